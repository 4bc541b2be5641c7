//! Writes the resource definitions: `crdgen [DIRECTORY]`, by default where the chart has them.

use std::{env, fs, path::PathBuf};

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let directory = PathBuf::from(env::args().nth(1).unwrap_or_else(|| "charts/durable-server/files/crds".into()));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for crd in crds::all()? {
        let path = directory.join(crds::file_name(&crd));
        fs::write(&path, crds::to_yaml(&crd)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
