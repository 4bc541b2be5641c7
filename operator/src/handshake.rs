//! TLS for sessions: handshakes run side by side, bounded in number and time, so that nobody waits for a slow one.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// One handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once. Further connections wait in the kernel.
const AT_ONCE: usize = 256;
/// After a refusal of the kernel, such as no file left.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections on this listener whose handshake went well.
#[must_use]
pub fn accept(listener: TcpListener, config: ServerConfig) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (accepted, stream) = mpsc::channel(1);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let tcp = tokio::select! {
                () = accepted.closed() => return,
                tcp = listener.accept() => tcp,
            };
            let Ok((tcp, from)) = tcp else {
                sleep(PAUSE).await;
                continue;
            };
            let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
            tokio::spawn(async move {
                // Gone already if this fails; the handshake will say so.
                let _ = tcp.set_nodelay(true);
                match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                    Ok(Ok(tls)) => {
                        // Closed only when the operator stops.
                        let _ = accepted.send(Ok(tls)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, %from, "no TLS"),
                    Err(_) => tracing::debug!(%from, "no TLS in time"),
                }
                drop(turn);
            });
        }
    });
    ReceiverStream::new(stream)
}
