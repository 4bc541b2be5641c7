//! Whoever opens connections without end, or sends without end, keeps nobody from being served.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use agent::routes::DirectoryUpdate;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::{sleep, timeout},
};

use support::{
    LIFE, Logs, OPERATOR, Stranger, pod,
    served::{SOON, Served, ask},
};

const CROWD: usize = 10_000;
/// One crowd at a time: a process has only so many files.
static TURN: Mutex<()> = Mutex::const_new(());
/// While the crowd comes, someone asks this often.
const ASK_EVERY: usize = 1_000;

/// Ten thousand connections that say only this. Meanwhile `asks` is answered again and again, in time. Of the crowd `stay`
/// at most remain, and of all that no more than a few lines are written.
async fn crowd(address: SocketAddr, says: &[u8], stay: usize, asks: impl AsyncFn()) {
    let _turn = TURN.lock().await;
    let logs = Logs::gather();
    let mut crowd = Vec::with_capacity(CROWD);
    for n in 0..CROWD {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may have closed it already.
        let _ = stream.write_all(says).await;
        crowd.push(stream);
        if n % ASK_EVERY == 0 {
            timeout(SOON, asks()).await.expect("not served while the crowd is there");
        }
    }
    timeout(SOON, asks()).await.expect("not served after the crowd has come");
    let waits = |stream: &&TcpStream| matches!(stream.try_read(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    let mut left = CROWD;
    for _ in 0..100 {
        left = crowd.iter().filter(waits).count();
        if left <= stay {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(left <= stay, "{left} of the crowd are still there");
    let lines = logs.lines();
    assert!((1..=20).contains(&lines.len()), "{} lines: {:?}", lines.len(), lines.first());
}

#[tokio::test]
async fn requests_are_answered_whoever_else_is_connected() {
    for says in [b"".as_slice(), b"GET /lobby HTTP/1.1\r\nx-slow: "] {
        let b = Served::start().await;
        let no_server = async || {
            let answer = ask(b.gateway, "GET / HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        };
        crowd(b.gateway, says, 4_096, no_server).await;
    }
}

#[tokio::test]
async fn peers_connect_whoever_else_is_connected() {
    let b = Served::start().await;
    let peer = Stranger::shows(&OPERATOR, &pod("a"), SystemTime::now() + LIFE);
    let speaks = async || assert!(peer.hears(b.peers).await.is_ok());
    crowd(b.peers, b"\x16\x03\x01", 1_024, speaks).await;
}

#[tokio::test]
async fn probes_are_answered_whoever_else_is_connected() {
    let b = Served::start().await;
    let probe = async || assert!(b.ask("GET /livez HTTP/1.1\r\nhost: b\r\n\r\n").await.contains(" 200 "));
    crowd(b.hooks, b"GET /livez", 256, probe).await;
}

#[tokio::test]
async fn a_body_of_a_gibibyte_is_refused_before_it_is_read() {
    let b = Served::start().await;
    let head = "POST /lobby HTTP/1.1\r\nhost: b\r\nconnection: close\r\n";
    let announced = ask(b.gateway, &format!("{head}content-length: {}\r\n\r\nxxx", 1u64 << 30)).await;
    assert!(announced.starts_with("HTTP/1.1 413"), "{announced}");

    // One that does not say how long it will be is not read any further than it is kept, without a server to read it.
    b.agent.routes.apply(DirectoryUpdate { version: 1, complete: true, ..DirectoryUpdate::default() });
    let mut stream = TcpStream::connect(b.gateway).await.unwrap();
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
    let (mut answers, mut sends) = stream.split();
    let mut sent = 0;
    let sending = async {
        while sent < 1 << 30 && sends.write_all(&chunk).await.is_ok() {
            sent += 0x10000;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    let answered = async {
        tokio::select! {
            () = sending => unreachable!("it waits for ever"),
            read = answers.read_exact(&mut answer) => read,
        }
    };
    timeout(SOON, answered).await.expect("no answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    assert!(sent < 64 << 20, "{sent} bytes were taken");
}
