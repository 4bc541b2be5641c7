//! What the API server takes, and what it says to what it does not take.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Store, repository};

fn samples(kind: &str) -> Result<Vec<PathBuf>> {
    let directory = repository().join("crds/tests/samples").join(kind);
    let entries = directory.read_dir().with_context(|| directory.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

#[tokio::test]
async fn good_objects_are_taken_and_bad_ones_refused_with_a_sentence() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let namespace = cluster.fresh_namespace("resources").await?;
    let apply = async |file: &PathBuf| -> Result<(bool, String)> {
        let file = file.to_string_lossy();
        cluster.kubectl(&["apply", "--warnings-as-errors", "-n", &namespace, "-f", &file]).await
    };
    for file in samples("good")? {
        let (taken, said) = apply(&file).await?;
        ensure!(taken, "{}: {said}", file.display());
    }
    let bad = samples("bad")?;
    ensure!(!bad.is_empty(), "there are no bad samples");
    for file in &bad {
        let text = std::fs::read_to_string(file)?;
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
        let expected = expected.with_context(|| format!("{}: nothing is expected", file.display()))?;
        let (taken, said) = apply(file).await?;
        ensure!(!taken, "{} was taken", file.display());
        ensure!(said.contains(expected), "{}: expected `{expected}`, got `{said}`", file.display());
    }
    cluster.remove_namespace(&namespace).await
}
