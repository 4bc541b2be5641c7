//! A host of one kind of server, and the agent beside it.

use std::{path::Path, sync::Arc, time::Duration};

use agent::{
    agent::{Agent, Pool},
    config::Config,
};
use bytes::Bytes;
use clap::Parser;
use durable_sdk::{Context, DurableServer, LoadError, ServerName, State};
use handoff::{ServerId, ServerUid};
use http_body_util::{Either, Full};
use hyper::{Request, Response};
use store::Memory;
use tokio::{sync::mpsc, time::timeout};
use wire::session::{FromAgent, from_agent};

const PATIENCE: Duration = Duration::from_secs(20);

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

/// Posts this to the server in this agent's host; the answer's status, if there was one.
pub async fn post(agent: &Agent, text: &'static str, epoch: u64) -> Option<u16> {
    let request = Request::post("/")
        .header("host", "x")
        .header("durable-server", "ns/a")
        .header("durable-uid", "u-1")
        .header("durable-epoch", epoch)
        .body(Either::Left(Full::new(Bytes::from(text))))
        .unwrap();
    agent.host.forward(request).await.ok().map(|answer| answer.status().as_u16())
}

/// The next that an operator hears of the agent's servers.
pub async fn hear(told: &mut mpsc::UnboundedReceiver<FromAgent>) -> from_agent::Body {
    loop {
        let message = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        match message.body.unwrap() {
            from_agent::Body::Status(_) => {}
            body => return body,
        }
    }
}

/// The pool, with its snapshots there.
pub fn pool(store: &Arc<Memory>) -> Pool {
    let spec: crds::DurableServerPoolSpec =
        serde_json::from_value(serde_json::json!({ "store": { "s3": { "bucket": "b-1" } } })).unwrap();
    let settings = Arc::new(crds::settings::pool(&spec).unwrap());
    let objects: Arc<dyn store::Objects> = store.clone();
    Pool { spec: Arc::new(spec), settings, store: objects.into() }
}
