//! A host of one kind of server, and the agent beside it.

use std::{path::Path, sync::Arc};

use agent::{
    agent::{Agent, Pool},
    config::Config,
};
use bytes::Bytes;
use clap::Parser;
use durable_sdk::{Context, DurableServer, LoadError, ServerName, State};
use handoff::{ServerId, ServerUid};
use hyper::{Request, Response};
use store::Memory;

/// A server whose state is what was posted to it last.
pub struct Note(Bytes);

impl DurableServer for Note {
    const TYPE: &str = "note";
    const STATE_VERSION: u32 = 1;

    fn load(_: &ServerName, _: Option<serde_json::Value>, state: Option<State>) -> Result<Self, LoadError> {
        Ok(Self(state.map_or_else(Bytes::new, |state| state.body)))
    }

    async fn handle(&mut self, request: Request<Bytes>, _: &mut Context) -> Response<Bytes> {
        self.0 = request.into_body();
        Response::new(self.0.clone())
    }

    fn snapshot(&self) -> Bytes {
        self.0.clone()
    }
}

/// The one that tests are about.
pub fn server() -> ServerId {
    ServerId { namespace: "ns".into(), name: "a".into(), uid: ServerUid("u-1".into()) }
}

/// An agent of pod `pod-b`, beside the host that has its socket there.
pub fn agent(dir: &Path) -> Arc<Agent> {
    super::agent(Config::parse_from([
        "durable-agent",
        "--pod",
        "notes-1",
        "--namespace",
        "ns",
        "--pod-uid",
        "pod-b",
        "--pod-ip",
        "127.0.0.1",
        "--pool",
        "notes",
        "--operator",
        "http://127.0.0.1:1",
        "--dir",
        dir.to_str().unwrap(),
    ]))
}

/// The pool, with its snapshots there.
pub fn pool(store: &Arc<Memory>) -> Pool {
    let spec: crds::DurableServerPoolSpec =
        serde_json::from_value(serde_json::json!({ "store": { "s3": { "bucket": "b-1" } } })).unwrap();
    let settings = Arc::new(crds::settings::pool(&spec).unwrap());
    let objects: Arc<dyn store::Objects> = store.clone();
    Pool { spec: Arc::new(spec), settings, store: objects.into() }
}
