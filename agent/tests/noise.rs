//! What no host and no peer should say: an error in bounded time, never a panic, and never a state that is not intact.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{io::Write, os::unix::net::UnixListener, sync::LazyLock, thread, time::Duration};

use agent::{
    host::{HostClient, Snapshot},
    peer::{final_from_wire, final_to_wire, state_from_wire, state_to_wire},
};
use bytes::Bytes;
use handoff::{
    Epoch, ServerUid,
    source::{Final, Mark, State},
};
use proptest::prelude::*;
use prost::Message;
use tokio::runtime::Runtime;
use wire::{peer, session};

const WITHIN: Duration = Duration::from_secs(5);
const MAX_STATE: u64 = 1 << 16;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// A host that answers every call with these bytes, and then hangs up.
fn asking<T>(answer: Vec<u8>, ask: impl AsyncFnOnce(HostClient) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("host.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Whoever asks may have had enough before the end.
        let _ = stream.write_all(&answer);
    });
    let came = RUNTIME.block_on(ask(HostClient::new(&socket, MAX_STATE)));
    host.join().unwrap();
    came
}

/// Something like an HTTP answer: right, nearly right, or not at all.
fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let status =
        prop_oneof![Just("200 OK"), Just("204 No Content"), Just("304 Not Modified"), Just("500 x"), Just("9 9")];
    let name = prop::sample::select(vec![
        "durable-instance",
        "durable-revision",
        "durable-checksum",
        "durable-state-version",
        "content-length",
        "transfer-encoding",
        "connection",
    ]);
    let value = prop_oneof![
        (0..40u64).prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        Just("chunked".to_owned()),
        "[ -~]{0,12}",
        "\\PC{0,6}",
    ];
    let body = prop::collection::vec(any::<u8>(), 0..64);
    let http = (status, prop::collection::vec((name, value), 0..7), body.clone(), any::<bool>()).prop_map(
        |(status, headers, body, is_marked)| {
            let mut answer = format!("HTTP/1.1 {status}\r\n").into_bytes();
            for (name, value) in headers {
                answer.extend(format!("{name}: {value}\r\n").into_bytes());
            }
            if is_marked {
                let (length, checksum) = (body.len(), crc32fast::hash(&body));
                let mark = format!("durable-instance: 1\r\ndurable-revision: 1\r\ndurable-checksum: {checksum}\r\n");
                answer.extend(format!("{mark}durable-state-version: 1\r\ncontent-length: {length}\r\n").into_bytes());
            }
            answer.extend(b"\r\n");
            answer.extend(body);
            answer
        },
    );
    prop_oneof![4 => http, 1 => body]
}

fn any_state() -> impl Strategy<Value = State<Bytes>> {
    (any::<[u64; 2]>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(
        |([instance, revision], version, body)| State {
            mark: Mark { instance, revision, checksum: crc32fast::hash(&body) },
            version,
            body: body.into(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_state_from_the_host_is_intact_or_an_error(answer in any_answer(), freezes: bool) {
        let uid = ServerUid("u-1".into());
        let state = asking(answer, async |client| {
            if freezes {
                match client.freeze(&uid, Epoch(1), 1, None, WITHIN).await {
                    Ok(Final::State(state)) => Some(state),
                    _ => None,
                }
            } else {
                match client.snapshot(&uid, Epoch(1), None, WITHIN).await {
                    Ok(Snapshot::State(state)) => Some(state),
                    _ => None,
                }
            }
        });
        if let Some(state) = state {
            prop_assert!(state.body.len() as u64 <= MAX_STATE);
            prop_assert_eq!(crc32fast::hash(&state.body), state.mark.checksum);
        }
    }

    #[test]
    fn what_the_host_says_of_itself_is_read_or_an_error(
        json in prop_oneof!["\\PC{0,60}", Just("[".repeat(100_000)), Just(r#"{"instance":1,"types":[{}]}"#.to_owned())],
        lists: bool,
    ) {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len());
        let is_read = asking(answer.into_bytes(), async |client| {
            if lists { client.list(WITHIN).await.is_ok() } else { client.describe(WITHIN).await.is_ok() }
        });
        prop_assert!(!is_read || serde_json::from_str::<serde_json::Value>(&json).is_ok());
    }
}

proptest! {
    #[test]
    fn noise_is_no_message_or_one_that_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = peer::FromSource::decode(bytes.as_slice()) {
            match message.body {
                Some(peer::from_source::Body::Warm(state)) => {
                    prop_assert!(state_from_wire(state).is_none_or(|s| crc32fast::hash(&s.body) == s.mark.checksum));
                }
                Some(peer::from_source::Body::Final(last)) => drop(last.last.map(final_from_wire)),
                _ => {}
            }
        }
        // Both ends of a session, too: what is decoded is of the wire's own types, whose numbers are then judged.
        let _ = session::ToAgent::decode(bytes.as_slice());
        let _ = session::FromAgent::decode(bytes.as_slice());
        let _ = peer::FromTarget::decode(bytes.as_slice());
    }

    #[test]
    fn a_state_comes_over_the_wire_as_it_was_or_not_at_all(state in any_state(), at: prop::sample::Index, bit in 0..8u32) {
        let wire = state_to_wire(&state);
        prop_assert_eq!(state_from_wire(peer::State::decode(wire.encode_to_vec().as_slice()).unwrap()), Some(state.clone()));
        prop_assert_eq!(state_from_wire(peer::State { mark: None, ..wire.clone() }), None);
        let last = Final::State(state.clone());
        prop_assert_eq!(final_from_wire(final_to_wire(&last)), Some(last));
        if !state.body.is_empty() {
            let mut body = wire.body.to_vec();
            let byte = at.index(body.len());
            body[byte] ^= 1 << bit;
            prop_assert_eq!(state_from_wire(peer::State { body: body.into(), ..wire }), None);
        }
    }
}
