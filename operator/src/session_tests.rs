use std::{collections::BTreeMap, net::SocketAddr, sync::atomic::AtomicBool};

use crds::DurableServerPoolSpec;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_stream::StreamExt;
use tonic::transport::server::TcpIncoming;
use wire::session::{Held, ServerRef, operator_client::OperatorClient, to_agent};

use super::*;
use crate::{
    driver::{self, Edges},
    model::{Key, Kind, Pod, PoolObject, ServerObject},
    read,
    world::World,
};

/// Tokens are `pod-<n>`.
struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        let n = token.strip_prefix("pod-").ok_or_else(|| AuthError::Refused("it is not one".into()))?;
        Ok(Identity { namespace: "ns".into(), pod: format!("rooms-{n}"), uid: PodUid(format!("u{n}")) })
    }
}

/// An operator on loopback without a cluster.
struct Running {
    address: SocketAddr,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
    _tasks: [JoinHandle<()>; 2],
}

impl Running {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (events, incoming) = mpsc::channel(64);
        let (writes, mut written) = mpsc::unbounded_channel();
        let (notes, _) = mpsc::channel(1);
        let (lens, _) = crate::page::new(stop.clone());
        let (certificates, _) = mpsc::channel(1);
        let (_, leads_until) = watch::channel(Some(Instant::now() + Duration::from_hours(1)));
        let ready = Arc::new(AtomicBool::new(false));
        let (_ask, asks) = mpsc::channel(1);
        let edges = Edges { writes, notes, certificates, ready, lens, asks, leads_until };
        let world = World::new("cluster".into(), 1);
        let driven = tokio::spawn(driver::run(world, incoming, edges, stop.clone()));
        let leadership = watch::Sender::new(Leadership::Ours);
        let sessions = Sessions::new(Arc::new(Tokens), events.clone(), leadership.subscribe());
        let stopped = stop.clone();
        let served = tokio::spawn(async move {
            tokio::spawn(async move { while written.recv().await.is_some() {} });
            serve(sessions, TcpIncoming::from(listener), stopped).await.unwrap();
        });
        Self { address, events, stop, _tasks: [driven, served] }
    }

    /// A pool, one pod, one server.
    async fn fill(&self) {
        let spec: DurableServerPoolSpec =
            serde_json::from_value(json!({ "store": { "s3": { "bucket": "b-1" } } })).unwrap();
        let pool = PoolObject {
            key: Key::new("ns", "rooms"),
            uid: "p".into(),
            generation: 1,
            settings: crds::settings::pool(&spec),
            spec,
            status: crds::DurableServerPoolStatus::default(),
        };
        let pod = Pod {
            uid: PodUid("u1".into()),
            key: Key::new("ns", "rooms-1"),
            pool: "rooms".into(),
            running: true,
            ready: true,
            ..Pod::default()
        };
        let server: crds::DurableServer = serde_json::from_value(json!({
            "apiVersion": "durableserver.io/v1alpha1",
            "kind": "DurableServer",
            "metadata": { "name": "lobby", "namespace": "ns", "uid": "s1" },
            "spec": { "pool": "rooms", "type": "room" },
        }))
        .unwrap();
        let server: ServerObject = read::server(server);
        for event in [Event::Pool(Box::new(pool)), Event::Pod(Box::new(pod)), Event::Server(Box::new(server))] {
            self.events.send(event).await.unwrap();
        }
        for kind in Kind::ALL {
            self.events.send(Event::Initialised(kind)).await.unwrap();
        }
    }

    async fn connect(&self, token: &str, first: from_agent::Body) -> Result<Agent, Status> {
        let mut client = OperatorClient::connect(format!("http://{}", self.address)).await.unwrap();
        let (say, said) = mpsc::channel(16);
        say.send(FromAgent { body: Some(first) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let heard = client.session(request).await?.into_inner();
        Ok(Agent { say, heard })
    }
}

struct Agent {
    say: mpsc::Sender<FromAgent>,
    heard: Streaming<ToAgent>,
}

impl Agent {
    async fn next(&mut self) -> Result<to_agent::Body, Status> {
        let message = timeout(Duration::from_secs(5), self.heard.next()).await.expect("nothing was said");
        message.unwrap_or_else(|| Err(Status::aborted("the stream ended"))).map(|message| message.body.unwrap())
    }

    async fn until<T>(&mut self, wanted: impl Fn(to_agent::Body) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await.unwrap()) {
                return found;
            }
        }
    }

    async fn say(&self, body: from_agent::Body) {
        self.say.send(FromAgent { body: Some(body) }).await.unwrap();
    }
}

fn hello() -> from_agent::Body {
    from_agent::Body::Hello(Hello {
        protocol: wire::PROTOCOL,
        gateway_address: "10.0.0.1:7070".into(),
        types: vec![wire::session::HostType { name: "room".into(), state_version: 1, loads: vec![1] }],
        ..Hello::default()
    })
}

#[tokio::test]
async fn a_session_from_hello_to_directory() {
    let operator = Running::start().await;
    operator.fill().await;
    let mut agent = operator.connect("pod-1", hello()).await.unwrap();
    let welcome = agent.next().await.unwrap();
    let to_agent::Body::Welcome(welcome) = welcome else { panic!("{welcome:?}") };
    assert_eq!((welcome.cluster_id.as_str(), welcome.pod_uid.as_str()), ("cluster", "u1"));
    assert!(welcome.settings.unwrap().spec_json.contains("b-1"));
    let assign = agent.until(|body| match body {
        to_agent::Body::Assign(assign) => Some(assign),
        _ => None,
    });
    let server: ServerRef = assign.await.server.unwrap();
    let held = Held { server: Some(server), epoch: 1, phase: wire::session::Phase::Active.into(), ..Held::default() };
    agent.say(from_agent::Body::Held(held)).await;
    let entry = agent.until(|body| match body {
        to_agent::Body::Directory(directory) => directory.entries.into_iter().find(|entry| entry.epoch == 1),
        _ => None,
    });
    assert_eq!(entry.await.gateway_address, "10.0.0.1:7070");

    let mut newer = operator.connect("pod-1", hello()).await.unwrap();
    assert!(matches!(newer.next().await, Ok(to_agent::Body::Welcome(_))));
    let end = loop {
        if let Err(status) = agent.next().await {
            break status;
        }
    };
    assert!(end.message().contains("replaced by a newer session"), "{end}");
    operator.stop.cancel();
}

#[tokio::test]
async fn who_is_not_let_in() {
    let operator = Running::start().await;
    let early = operator.connect("pod-1", hello()).await.unwrap().next().await.unwrap_err();
    assert_eq!(early.code(), tonic::Code::Unavailable, "{early}");
    operator.fill().await;
    let bad = operator.connect("nonsense", hello()).await.err().unwrap();
    assert_eq!(bad.code(), tonic::Code::Unauthenticated);
    let long = operator.connect(&"x".repeat(MAX_TOKEN + 1), hello()).await.err().unwrap();
    assert_eq!(long.code(), tonic::Code::Unauthenticated);
    let unknown = operator.connect("pod-9", hello()).await.unwrap().next().await.unwrap_err();
    assert!(unknown.message().contains("ns/rooms-9"), "{unknown}");
    let status = from_agent::Body::Status(wire::session::Status::default());
    let rude = operator.connect("pod-1", status).await.unwrap().next().await.unwrap_err();
    assert_eq!(rude.code(), tonic::Code::InvalidArgument);
    operator.stop.cancel();
}

#[test]
fn what_a_review_must_say() {
    let extra =
        |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), vec!["x".to_owned()])).collect::<BTreeMap<_, _>>();
    let both = [POD_NAME, POD_UID];
    let review = |authenticated, audience: &str, username: &str, keys: &[&str]| TokenReviewStatus {
        authenticated: Some(authenticated),
        audiences: Some(vec![audience.into()]),
        user: Some(UserInfo { username: Some(username.into()), extra: Some(extra(keys)), ..UserInfo::default() }),
        ..TokenReviewStatus::default()
    };
    let account = "system:serviceaccount:ns:rooms";
    let good = identity("durable-operator", review(true, "durable-operator", account, &both)).unwrap();
    assert_eq!(good, Identity { namespace: "ns".into(), pod: "x".into(), uid: PodUid("x".into()) });
    for bad in [
        review(false, "durable-operator", account, &both),
        review(true, "another", account, &both),
        review(true, "durable-operator", "system:admin", &both),
        review(true, "durable-operator", account, &both[..1]),
        TokenReviewStatus::default(),
    ] {
        assert!(matches!(identity("durable-operator", bad), Err(AuthError::Refused(_))));
    }
}
