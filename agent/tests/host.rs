//! The client of the host contract against canned answers: what it writes, and what it makes of what it reads.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use agent::host::{HostClient, HostError, ListedPhase, Mode, Snapshot, StartCall};
use bytes::Bytes;
use handoff::{
    Epoch, ServerId, ServerUid,
    source::{Final, Mark, State},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
};

const WITHIN: Duration = Duration::from_secs(5);

/// The mark of the state "state".
const MARK: Mark = Mark { instance: 7, revision: 9, checksum: 2_744_374_011 };

struct Host {
    client: HostClient,
    asked: JoinHandle<String>,
    _dir: TempDir,
}

impl Host {
    /// Gives this answer to one call.
    fn answering(answer: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("host.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 8192];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked[..length].to_vec()).unwrap()
        });
        Self { client: HostClient::new(&socket, 1 << 20), asked, _dir: dir }
    }

    async fn was_asked(self, parts: &[&str]) {
        let asked = self.asked.await.unwrap();
        for part in parts {
            assert!(asked.contains(part), "{part:?} is not in {asked}");
        }
    }
}

fn uid() -> ServerUid {
    ServerUid("u-1".into())
}

fn state() -> State<Bytes> {
    State { mark: MARK, version: 2, body: Bytes::from_static(b"state") }
}

const MARKED: &str = "HTTP/1.1 200 OK\r\ndurable-instance: 7\r\ndurable-revision: 9\r\ndurable-checksum: 2744374011\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn starts_a_standby_from_a_state() {
    let host = Host::answering(MARKED);
    let id = ServerId { namespace: "ns".into(), name: "lobby".into(), uid: uid() };
    let (config, state) = (serde_json::json!({"a": 1}), state());
    let call = StartCall {
        id: &id,
        kind: "room",
        epoch: Epoch(4),
        attempt: 5,
        mode: Mode::Standby,
        config: Some(&config),
        state: Some(&state),
    };
    assert_eq!(host.client.start(&call, WITHIN).await.unwrap(), MARK);
    host.was_asked(&[
        "POST /.durable/v1/servers/u-1/start HTTP/1.1\r\n",
        "durable-server: ns/lobby\r\n",
        "durable-type: room\r\n",
        "durable-epoch: 4\r\n",
        "durable-attempt: 5\r\n",
        "durable-mode: standby\r\n",
        "durable-config: eyJhIjoxfQ==\r\n",
        "durable-state: full\r\n",
        "durable-state-version: 2\r\n",
        "durable-instance: 7\r\n",
        "durable-revision: 9\r\n",
        "durable-checksum: 2744374011\r\n",
        "\r\n\r\nstate",
    ])
    .await;
}

#[tokio::test]
async fn reads_a_state_and_its_absence() {
    let host = Host::answering(
        "HTTP/1.1 200 OK\r\ndurable-instance: 7\r\ndurable-revision: 9\r\ndurable-checksum: 2744374011\r\n\
         durable-state-version: 2\r\ncontent-length: 5\r\n\r\nstate",
    );
    assert_eq!(host.client.snapshot(&uid(), Epoch(4), None, WITHIN).await.unwrap(), Snapshot::State(state()));
    host.was_asked(&["GET /.durable/v1/servers/u-1/snapshot HTTP/1.1\r\n", "durable-epoch: 4\r\n"]).await;

    let host = Host::answering(
        "HTTP/1.1 204 No Content\r\ndurable-instance: 7\r\ndurable-revision: 9\r\ndurable-checksum: 2744374011\r\n\r\n",
    );
    let frozen = host.client.freeze(&uid(), Epoch(4), 6, Some(MARK), WITHIN).await.unwrap();
    assert_eq!(frozen, Final::Unchanged(MARK));
    host.was_asked(&["/u-1/freeze HTTP/1.1\r\n", "durable-attempt: 6\r\n", "durable-revision: 9\r\n"]).await;
}

#[tokio::test]
async fn activates_from_what_the_standby_has() {
    let host = Host::answering(MARKED);
    let mark = host.client.activate(&uid(), Epoch(4), 6, &Final::Unchanged(MARK), WITHIN).await.unwrap();
    assert_eq!(mark, MARK);
    host.was_asked(&["/u-1/activate HTTP/1.1\r\n", "durable-state: unchanged\r\n", "durable-revision: 9\r\n"]).await;
}

#[tokio::test]
async fn reads_what_a_host_is_and_has() {
    let body = r#"{"contract":1,"instance":7,"types":[{"name":"room","stateVersion":2,"loads":[1,2]}]}"#;
    let host = Host::answering(leak(body));
    let describe = host.client.describe(WITHIN).await.unwrap();
    assert_eq!((describe.instance, describe.types[0].loads.as_slice()), (7, [1, 2].as_slice()));

    let body = r#"[{"uid":"u-1","server":"ns/lobby","type":"room","epoch":4,"phase":"frozen","revision":9}]"#;
    let listed = Host::answering(leak(body)).client.list(WITHIN).await.unwrap();
    assert_eq!((listed[0].epoch, listed[0].phase), (Epoch(4), ListedPhase::Frozen));

    let error = Host::answering(leak(r#"{"contract":2,"instance":7,"types":[]}"#)).client.describe(WITHIN).await;
    assert!(error.unwrap_err().to_string().contains("it speaks contract 2, this agent speaks 1"));
}

fn leak(body: &str) -> &'static str {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).leak()
}

#[tokio::test]
async fn says_what_went_wrong() {
    let refused = Host::answering("HTTP/1.1 412 Precondition Failed\r\ncontent-length: 8\r\n\r\ntoo late");
    let error = refused.client.thaw(&uid(), Epoch(4), 6, WITHIN).await.unwrap_err();
    assert_eq!(error.to_string(), "the host refused (412): too late");

    let broken = Host::answering(
        "HTTP/1.1 200 OK\r\ndurable-instance: 7\r\ndurable-revision: 9\r\ndurable-checksum: 1\r\n\
         durable-state-version: 2\r\ncontent-length: 5\r\n\r\nstate",
    );
    let error = broken.client.snapshot(&uid(), Epoch(4), None, WITHIN).await.unwrap_err();
    assert!(matches!(&error, HostError::Invalid(message) if message.contains("CRC-32 is 2744374011")), "{error}");

    let large = Host::answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstate");
    large.client.set_max_state(4);
    let error = large.client.snapshot(&uid(), Epoch(4), None, WITHIN).await.unwrap_err();
    assert!(matches!(error, HostError::TooLarge(4)), "{error}");

    let absent = HostClient::new(std::path::Path::new("absent.sock"), 0);
    assert!(matches!(absent.stop(&uid(), Epoch(4), 6, WITHIN).await, Err(HostError::Unreachable(_))));

    let silent = Host::answering("");
    let error = silent.client.stop(&uid(), Epoch(4), 6, WITHIN).await.unwrap_err();
    assert!(matches!(error, HostError::Unreachable(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn waits_no_longer_than_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("host.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = HostClient::new(&socket, 1 << 20).stop(&uid(), Epoch(4), 6, WITHIN).await.unwrap_err();
    assert!(matches!(error, HostError::Timeout(WITHIN)), "{error}");
}
