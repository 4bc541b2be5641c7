//! Generates the contracts' Rust from `proto/`, without a protoc binary.

fn main() -> anyhow::Result<()> {
    let files = ["session.proto", "peer.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
