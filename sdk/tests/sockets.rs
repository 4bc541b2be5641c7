//! `WebSockets` and streamed answers, across the end of a server's time in a host.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use support::{Harness, slow};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, handshake::client::generate_key, protocol::frame::coding::CloseCode},
};

type Client = WebSocketStream<UnixStream>;

/// Long enough for what must not happen.
const MOMENT: Duration = Duration::from_millis(50);

async fn open(harness: &Harness, uid: &str, epoch: u64) -> Result<Client, Error> {
    let stream = UnixStream::connect(harness.socket()).await.unwrap();
    let request = Request::get("ws://host/socket")
        .header("host", "host")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .header("durable-uid", uid)
        .header("durable-epoch", epoch);
    client_async(request.body(()).unwrap(), stream).await.map(|(client, _)| client)
}

async fn say(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
}

async fn heard(client: &mut Client) -> String {
    let next = timeout(Duration::from_secs(5), client.next()).await.expect("an answer in time");
    next.unwrap().unwrap().into_text().unwrap().to_string()
}

/// The code of the Close that comes next.
async fn closed(client: &mut Client) -> CloseCode {
    let next = timeout(Duration::from_secs(5), client.next()).await.expect("it ends in time");
    let Some(Ok(Message::Close(Some(frame)))) = next else { panic!("{next:?}") };
    frame.code
}

#[tokio::test]
async fn messages_are_handled_in_their_turn_and_change_the_state() {
    let harness = Harness::start();
    harness.verb("start", "s1", 1, 1).await;
    let (mut one, mut two) = (open(&harness, "s1", 1).await.unwrap(), open(&harness, "s1", 1).await.unwrap());
    say(&mut one, "a").await;
    assert_eq!(heard(&mut one).await, "a");
    say(&mut two, "b").await;
    assert_eq!(heard(&mut two).await, "ab");
    one.send(Message::binary(b"c".as_slice())).await.unwrap();
    assert_eq!(heard(&mut one).await, "c");
    assert_eq!(harness.list().await[0]["revision"], 4);
    assert_eq!(harness.user(Method::GET, "/socket", "s1", 1, "").await.status, StatusCode::UPGRADE_REQUIRED);
}

#[tokio::test]
async fn a_frozen_server_handles_no_message_until_it_is_thawed() {
    let harness = Harness::start();
    harness.verb("start", "s2", 1, 1).await;
    let mut client = open(&harness, "s2", 1).await.unwrap();
    say(&mut client, "before").await;
    assert_eq!(heard(&mut client).await, "before");
    let frozen = harness.verb("freeze", "s2", 1, 2).await;
    assert_eq!((frozen.status, frozen.body.as_str()), (StatusCode::OK, "before"));
    say(&mut client, " after").await;
    assert!(timeout(MOMENT, client.next()).await.is_err());
    assert_eq!(harness.verb("freeze", "s2", 1, 3).await.body, "before");
    harness.verb("thaw", "s2", 1, 4).await;
    assert_eq!(heard(&mut client).await, "before after");
}

#[tokio::test]
async fn a_freeze_waits_for_the_message_under_way_and_its_answer_goes_out() {
    let harness = Harness::start();
    harness.verb("start", "s3", 1, 1).await;
    let mut client = open(&harness, "s3", 1).await.unwrap();
    say(&mut client, "slow").await;
    say(&mut client, "next").await;
    let freeze = async {
        sleep(MOMENT).await;
        harness.verb("freeze", "s3", 1, 2).await
    };
    let release = async {
        sleep(2 * MOMENT).await;
        slow("s3").add_permits(1);
    };
    let (frozen, ()) = tokio::join!(freeze, release);
    assert_eq!(frozen.body, "slow");
    assert_eq!(heard(&mut client).await, "slow");
    harness.verb("stop", "s3", 1, 3).await;
    assert_eq!(closed(&mut client).await, CloseCode::Restart);
}

#[tokio::test]
async fn a_socket_is_opened_only_where_the_server_is() {
    let harness = Harness::start();
    harness.verb("start", "s4", 3, 1).await;
    harness.verb("freeze", "s4", 3, 2).await;
    for epoch in [2, 3] {
        let Err(Error::Http(answer)) = open(&harness, "s4", epoch).await else { panic!() };
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
        assert!(answer.headers().contains_key("durable-not-here"));
    }
}

#[tokio::test]
async fn a_message_whose_change_is_not_stored_is_not_answered() {
    let harness = Harness::start();
    harness.verb("start", "s5", 1, 1).await;
    let mut client = open(&harness, "s5", 1).await.unwrap();
    // There is no agent that could store it.
    say(&mut client, "durable").await;
    assert_eq!(closed(&mut client).await, CloseCode::Error);
}

#[tokio::test]
async fn a_server_closes_a_socket_after_what_it_said() {
    let harness = Harness::start();
    harness.verb("start", "s6", 1, 1).await;
    let mut client = open(&harness, "s6", 1).await.unwrap();
    say(&mut client, "close").await;
    assert_eq!(closed(&mut client).await, CloseCode::Normal);
}

#[tokio::test]
async fn a_streamed_answer_outlives_its_server() {
    let harness = Harness::start();
    harness.verb("start", "s7", 1, 1).await;
    let stream = UnixStream::connect(harness.socket()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/stream").header("durable-uid", "s7").header("durable-epoch", 1);
    let answer = sender.send_request(request.body(String::new()).unwrap()).await.unwrap();
    assert!(!answer.headers().contains_key("content-length"));
    let mut body = answer.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
    assert_eq!(harness.verb("freeze", "s7", 1, 2).await.status, StatusCode::OK);
    slow("s7").add_permits(1);
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two ");
    assert_eq!(harness.verb("stop", "s7", 1, 3).await.status, StatusCode::OK);
    slow("s7").add_permits(1);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "three");
}
