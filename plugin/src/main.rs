//! `kubectl durable`: looks at pools, asks what would happen, and writes the annotations and fields by which people are in
//! charge. It does nothing that `kubectl annotate` and `kubectl patch` could not do.

mod act;
mod args;
mod ask;
mod look;
mod moving;
mod screen;
mod table;
mod watch;

use anyhow::Context;
use clap::Parser;
use kube::{Client, Config, config::KubeConfigOptions};

use crate::{
    args::{Args, Cordoned, Plan, Verb},
    look::Namespace,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A second provider may come with a dependency, and kube would then not know which to take.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_kubeconfig(&options).await;
    let mut config = config.context("no access to a cluster: set KUBECONFIG, or name a context with --context")?;
    if let Some(namespace) = &args.namespace {
        config.default_namespace.clone_from(namespace);
    }
    let name = config.default_namespace.clone();
    let client = Client::try_from(config).context("the kubeconfig leads to no cluster")?;
    run(args, Namespace { client, name }).await
}

async fn run(args: Args, here: Namespace) -> anyhow::Result<()> {
    let operator = &args.operator;
    match args.verb {
        Verb::Get { pool } => {
            let seen = here.seen(pool).await?;
            print!("{}", table::pods(&seen));
        }
        Verb::Plan { pool, what } => {
            let pool = match &what {
                Plan::Drain { pod } => here.pool_of(pod).await?,
                _ => here.pool(pool).await?.0,
            };
            let servers = match &what {
                Plan::Move { servers, selector, .. } => here.servers_named(servers, selector.as_deref()).await?,
                _ => Vec::new(),
            };
            let told = ask::plan(&here, operator, &ask::query(&here.name, &pool, &what, &servers)).await?;
            print!("{}", table::plan(&told));
        }
        Verb::Drain { pod } => act::annotate_pod(&here, &pod, crds::DRAIN_ANNOTATION, true).await?,
        Verb::Undrain { pod } => act::annotate_pod(&here, &pod, crds::DRAIN_ANNOTATION, false).await?,
        Verb::Cordon(what) => cordon(&here, &what, true).await?,
        Verb::Uncordon(what) => cordon(&here, &what, false).await?,
        Verb::Pause { pool } => act::pause(&here, pool, true).await?,
        Verb::Resume { pool } => act::pause(&here, pool, false).await?,
        Verb::Move(what) => moving::run(&here, operator, &what).await?,
        Verb::Watch { pool } => watch::run(&here, pool).await?,
    }
    Ok(())
}

async fn cordon(here: &Namespace, what: &Cordoned, on: bool) -> anyhow::Result<()> {
    match what {
        Cordoned { pod: Some(pod), .. } => act::annotate_pod(here, pod, crds::CORDON_ANNOTATION, on).await,
        Cordoned { server: Some(server), .. } => act::cordon_server(here, server, on).await,
        Cordoned { .. } => anyhow::bail!("say what: --pod <name> or --server <name>"),
    }
}
