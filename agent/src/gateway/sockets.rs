//! `WebSockets`: bytes passed both ways between a client and a host or another gateway, until either ends, or the server
//! has gone elsewhere. Then the client is told to connect again, with a Close frame put in where a frame of the host has
//! ended: so its next attempt finds the server where it is served.

use std::{pin::pin, time::Duration};

use handoff::{Epoch, ServerUid};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::{self, Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    gate::Gate,
    gateway::{Inner, answer::UnderWay, frames::Frames},
    routes::{Found, Route, Way},
};

/// A Close frame with status 1012, Service Restart: come back at once (the registry of close codes of RFC 6455).
const CONNECT_AGAIN: &[u8] = b"\x88\x0f\x03\xf4connect again";

/// Bytes that are passed at once, each way: there may be thousands of sockets, and most of their messages are short.
const CHUNK: usize = 4096;

/// A side that takes nothing for this long is given up, with what waits for it.
const STALLED: Duration = Duration::from_secs(30);

/// How long one stays that came when the gateway was leaving. Its Service does not know yet, and would lead the client back
/// here at once, again and again.
const STAY: Duration = Duration::from_secs(1);

/// Clients that are asked to connect again because the gateway leaves are asked over so long, each at a time of its own: those
/// that all come in one moment wait for each other.
const SPREAD: Duration = Duration::from_secs(1);

/// How long a socket that is to end may take for it: to reach the end of a frame, and to hear the client's farewell.
const LINGER: Duration = Duration::from_secs(1);

/// How long a socket may stay, for all that the gateway knows.
#[derive(Clone, Debug)]
pub enum Stays {
    /// While this pod has the server, in this term.
    Here {
        /// Its name.
        name: String,
        /// Its resource.
        uid: ServerUid,
        /// The term.
        epoch: Epoch,
    },
    /// Another gateway knows. While this one stays.
    Elsewhere,
}

impl Stays {
    pub fn here(name: &str, route: &Route) -> Self {
        Self::Here { name: name.to_owned(), uid: route.uid.clone(), epoch: route.epoch }
    }
}

/// Whether a server that was here in this term is served elsewhere by now, or not at all. A frozen one may be thawed.
fn is_over(uid: &ServerUid, epoch: Epoch, found: &Found) -> bool {
    let Found::Known(route) = found else { return true };
    let is_here = matches!(route.way, Way::Here(_) | Way::Held);
    !is_here || route.uid != *uid || route.epoch != epoch
}

impl Inner {
    /// Passes bytes between the two sides of a socket, from the upgrade of both on.
    pub(super) async fn pass(
        &self,
        client: OnUpgrade,
        server: OnUpgrade,
        stays: Stays,
        end: CancellationToken,
        under_way: UnderWay,
    ) {
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a socket was not opened"),
        };
        self.metrics.socket_opened();
        let over = async {
            tokio::select! {
                () = self.over(&stays) => {}
                () = end.cancelled() => {}
            }
        };
        // What is served elsewhere is that pod's to judge.
        let gate = matches!(stays, Stays::Here { .. }).then(|| self.host.gate());
        Socket { client: TokioIo::new(client), server: TokioIo::new(server), gate }.run(over).await;
        self.metrics.socket_closed();
        drop(under_way);
    }

    /// Returns when it is time to connect again.
    pub(super) async fn over(&self, stays: &Stays) {
        match stays {
            Stays::Elsewhere => {
                let mut leaving = self.leaving.subscribe();
                if *leaving.borrow() {
                    return time::sleep(STAY).await;
                }
                // The sender is ours.
                let _ = leaving.wait_for(|leaving| *leaving).await;
                time::sleep(SPREAD.mul_f64(rand::random())).await;
            }
            Stays::Here { name, uid, epoch } => loop {
                let found = self.routes.find(name);
                if is_over(uid, *epoch, &found) {
                    return;
                }
                self.routes.changed(name, &found).await;
            },
        }
    }
}

struct Socket<S> {
    client: S,
    server: S,
    /// What must be open for anything to pass.
    gate: Option<Gate>,
}

impl<S: AsyncRead + AsyncWrite> Socket<S> {
    async fn run(self, over: impl Future<Output = ()>) {
        let (mut client, mut to_client) = split(self.client);
        let (mut server, mut to_server) = split(self.server);
        let gate = self.gate.as_ref();
        {
            let mut up = pin!(up(&mut client, &mut to_server, gate));
            {
                let mut down = pin!(down(&mut server, &mut to_client, gate, over));
                tokio::select! {
                    () = down.as_mut() => {}
                    // Nothing more comes from the client, or is taken from it: its last answers are on their way.
                    () = up.as_mut() => return drop(timeout(LINGER, down).await),
                }
            }
            let _ = timeout(LINGER, up).await;
        }
        // Bytes that are not read when a connection is closed reset it, and with it the Close frame that went before.
        let mut rest = vec![0; CHUNK];
        let reading = async { while let Ok(1..) = client.read(&mut rest).await {} };
        let _ = timeout(LINGER, reading).await;
    }
}

/// From the client to the server, until the client has no more to say, or the server takes no more.
async fn up<R: AsyncRead, W: AsyncWrite>(client: &mut ReadHalf<R>, server: &mut WriteHalf<W>, gate: Option<&Gate>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = client.read(&mut chunk).await {
        if is_shut(gate) || !send(server, &chunk[..length], STALLED).await {
            break;
        }
    }
    let _ = timeout(LINGER, server.shutdown()).await;
}

/// From the server to the client, until the server ends it, or it is over and a frame has ended.
async fn down<R: AsyncRead, W: AsyncWrite>(
    server: &mut ReadHalf<R>,
    client: &mut WriteHalf<W>,
    gate: Option<&Gate>,
    over: impl Future<Output = ()>,
) {
    let mut over = pin!(over);
    let mut until = None;
    let mut frames = Frames::default();
    let mut chunk = vec![0; CHUNK];
    let cut = loop {
        let length = if let Some(until) = until {
            tokio::select! {
                biased;
                read = server.read(&mut chunk) => read,
                // What was answered before the server went has been passed on.
                () = std::future::ready(()), if frames.is_between() => break false,
                () = time::sleep_until(until) => break false,
            }
        } else {
            tokio::select! {
                read = server.read(&mut chunk) => read,
                () = over.as_mut() => {
                    until = Some(Instant::now() + LINGER);
                    continue;
                }
            }
        };
        let Ok(length @ 1..) = length else { break false };
        if is_shut(gate) {
            break false;
        }
        let end = frames.pass(&chunk[..length]);
        // A host that does not stop talking is cut short after a whole frame.
        let is_late = until.is_some_and(|until| Instant::now() >= until) && !frames.is_closed();
        let cut = end.filter(|_| is_late);
        let within = if until.is_some() { LINGER } else { STALLED };
        if !send(client, &chunk[..cut.unwrap_or(length)], within).await {
            return;
        }
        if cut.is_some() {
            break true;
        }
    };
    // A host that has closed the socket itself has said why.
    if cut || frames.is_between() && !frames.is_closed() {
        send(client, CONNECT_AGAIN, LINGER).await;
    }
    let _ = timeout(LINGER, client.shutdown()).await;
}

fn is_shut(gate: Option<&Gate>) -> bool {
    gate.is_some_and(Gate::is_closed)
}

/// Whether all of it went out in time.
async fn send<W: AsyncWrite>(to: &mut WriteHalf<W>, bytes: &[u8], within: Duration) -> bool {
    let sending = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    matches!(timeout(within, sending).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use tokio::{io::DuplexStream, sync::oneshot, task::JoinHandle};

    use super::*;

    /// A socket between two ends, and what ends it.
    fn socket() -> (DuplexStream, DuplexStream, oneshot::Sender<()>, JoinHandle<()>) {
        let (client, from_client) = tokio::io::duplex(64);
        let (server, from_server) = tokio::io::duplex(64);
        let (end, ended) = oneshot::channel();
        let socket = Socket { client: from_client, server: from_server, gate: None };
        let run = socket.run(async { ended.await.unwrap_or(()) });
        (client, server, end, tokio::spawn(run))
    }

    async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn the_close_waits_for_the_end_of_a_frame() {
        let (mut client, mut server, end, run) = socket();
        server.write_all(b"\x81\x04ab").await.unwrap();
        end.send(()).unwrap();
        time::sleep(LINGER / 2).await;
        server.write_all(b"cd\x81\x01e").await.unwrap();
        assert_eq!(rest(&mut client).await, [b"\x81\x04abcd\x81\x01e", CONNECT_AGAIN].concat());
        drop(client);
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_put_into_a_frame_that_does_not_end() {
        let (mut client, mut server, end, run) = socket();
        server.write_all(b"\x81\x04ab").await.unwrap();
        end.send(()).unwrap();
        assert_eq!(rest(&mut client).await, b"\x81\x04ab");
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_talks_on_is_left_between_two_frames() {
        let (mut client, mut server, end, run) = socket();
        let talk = tokio::spawn(async move { while server.write_all(b"\x81\x03abc").await.is_ok() {} });
        time::sleep(Duration::from_millis(10)).await;
        end.send(()).unwrap();
        let mut heard = Vec::new();
        let mut chunk = [0; 7];
        // Slowly, so that what is said never ends before its time does.
        while let Ok(length @ 1..) = client.read(&mut chunk).await {
            heard.extend_from_slice(&chunk[..length]);
            time::sleep(Duration::from_millis(10)).await;
        }
        let frames = heard.strip_suffix(CONNECT_AGAIN).expect("it ends with the Close");
        assert!(!frames.is_empty() && frames.chunks(5).all(|frame| frame == b"\x81\x03abc"));
        drop(client);
        run.await.unwrap();
        talk.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_closes_has_the_last_word() {
        let (mut client, mut server, _end, run) = socket();
        server.write_all(b"\x88\x02\x03\xe8").await.unwrap();
        drop(server);
        assert_eq!(rest(&mut client).await, b"\x88\x02\x03\xe8");
        drop(client);
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_gone_says_nothing_and_the_gateway_does() {
        let (mut client, server, _end, run) = socket();
        drop(server);
        assert_eq!(rest(&mut client).await, CONNECT_AGAIN);
        drop(client);
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_takes_nothing_is_given_up() {
        let (mut client, server, _end, run) = socket();
        let began = Instant::now();
        while client.write_all(b"\x81\x03abc").await.is_ok() {}
        run.await.unwrap();
        assert!(began.elapsed() < STALLED + 3 * LINGER, "{:?}", began.elapsed());
        drop(server);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (client, mut server, _end, run) = socket();
        let began = Instant::now();
        let talk = tokio::spawn(async move { while server.write_all(b"\x81\x03abc").await.is_ok() {} });
        talk.await.unwrap();
        run.await.unwrap();
        assert!(began.elapsed() < STALLED + 3 * LINGER, "{:?}", began.elapsed());
        drop(client);
    }

    #[test]
    fn a_frozen_server_may_be_thawed_and_one_that_went_is_over() {
        let uid = ServerUid("u".into());
        let known =
            |uid: &str, epoch, way| Found::Known(Route { uid: ServerUid(uid.into()), epoch: Epoch(epoch), way }.into());
        assert!(!is_over(&uid, Epoch(3), &known("u", 3, Way::Held)));
        let there = Way::There { pod: handoff::PodUid("p".into()), gateway: "10.0.0.1:7070".parse().unwrap() };
        for found in [
            known("u", 4, there),
            known("u", 5, Way::Held),
            known("other", 3, Way::Held),
            known("u", 3, Way::Nowhere),
            Found::Unknown,
        ] {
            assert!(is_over(&uid, Epoch(3), &found), "{found:?}");
        }
    }
}
