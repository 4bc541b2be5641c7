//! The host's socket, its connections, and how the process ends.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::host::Running;

/// The agent runs as another user.
const MODE: u32 = 0o666;
/// After the end was asked for, calls may still be on their way.
const MIN_GRACE: Duration = Duration::from_millis(200);
/// Servers may still be leaving. Less than the 5 s that a pool grants the app by default (`hostStopTime`).
const MAX_GRACE: Duration = Duration::from_secs(3);
/// For answers under way when the socket is closed.
const FINISH: Duration = Duration::from_millis(500);
/// How often leases are looked at, for those who observe.
const EXPIRE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(20);
/// Out of file descriptors, say.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Why a host does not run.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Its socket cannot be opened.
    #[error("the host's socket {} cannot be opened: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] io::Error),
}

/// A host whose socket is open.
#[must_use]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    host: Arc<Running>,
}

impl Listening {
    pub(crate) fn open(dir: &Path, host: Running) -> Result<Self, HostError> {
        let path = dir.join("host.sock");
        let listener = bind(&path).map_err(|source| HostError::Socket { path: path.clone(), source })?;
        tracing::info!(socket = %path.display(), instance = host.around.instance, "listening");
        Ok(Self { listener, path, host: Arc::new(host) })
    }

    pub(crate) async fn serve_until_signal(self) -> Result<(), HostError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(HostError::Signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(HostError::Signal)?;
        self.serve_until(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        Ok(())
    }

    /// Serves until `end`. Then goes on for as long as servers are still leaving, 3 s at most, lets answers under way
    /// finish, and ends the terms of the servers that are left.
    pub async fn serve_until(self, end: impl Future<Output = ()>) {
        let Self { listener, path, host } = self;
        let closing = CancellationToken::new();
        let _ends_with_us = closing.clone().drop_guard();
        tokio::spawn(expire(Arc::clone(&host), closing.clone()));
        let mut connections = JoinSet::new();
        let mut ended = pin!(async {
            end.await;
            settle(&host).await;
        });
        loop {
            tokio::select! {
                () = &mut ended => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(Arc::clone(&host), stream, closing.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        // The path is in a shared volume, and nobody listens there any more.
        let _ = fs::remove_file(path);
        closing.cancel();
        if timeout(FINISH, async { while connections.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(connections = connections.len(), "answers under way are broken off");
            connections.shutdown().await;
        }
        for cell in host.registry.all() {
            cell.exit(&host.around);
        }
    }
}

/// Ends what a lease that is over leaves: whoever asks is refused by the clock already.
async fn expire(host: Arc<Running>, closing: CancellationToken) {
    let mut look = interval(EXPIRE);
    while closing.run_until_cancelled(look.tick()).await.is_some() {
        for cell in host.registry.all() {
            cell.expire(&host.around);
        }
    }
}

/// Bound under another name first: once it has its own, everyone who may use it can.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let new = path.with_extension("sock.new");
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(MODE))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Until no server is left, within bounds.
async fn settle(host: &Running) {
    let asked = Instant::now();
    let left = || host.registry.all().iter().filter(|cell| !cell.is_idle()).count();
    tracing::info!(servers = left(), "ending");
    sleep(MIN_GRACE).await;
    let mut look = interval(LOOK);
    while left() > 0 && asked.elapsed() < MAX_GRACE {
        look.tick().await;
    }
}

async fn serve(host: Arc<Running>, stream: UnixStream, closing: CancellationToken) {
    let service = service_fn(move |request| {
        let host = Arc::clone(&host);
        async move { Ok::<_, std::convert::Infallible>(host.answer(request).await) }
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke off");
    }
}
