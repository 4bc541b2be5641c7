//! Connections, each a newcomer: plain, or after a TLS handshake. Nobody waits for another's.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use crate::{Guarded, Newcomers, Seldom};

/// After a refusal of the kernel, such as no file left.
const PAUSE: Duration = Duration::from_millis(100);

/// What comes of a listener.
pub type Accepted<S> = ReceiverStream<io::Result<Guarded<S>>>;

/// Connections on this listener.
#[must_use]
pub fn plain(listener: TcpListener, newcomers: Newcomers) -> Accepted<TcpStream> {
    let (accepted, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some((tcp, from)) = next(&listener, &accepted).await {
            if accepted.send(Ok(Guarded::new(tcp, newcomers.enter(from)))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}

/// Connections on this listener whose handshake went well.
#[must_use]
pub fn tls(listener: TcpListener, config: Arc<ServerConfig>, newcomers: Newcomers) -> Accepted<TlsStream<TcpStream>> {
    let (accepted, stream) = mpsc::channel(1);
    let acceptor = TlsAcceptor::from(config);
    let refused = Arc::new(Seldom::new());
    tokio::spawn(async move {
        while let Some((tcp, from)) = next(&listener, &accepted).await {
            let newcomer = newcomers.enter(from);
            let (acceptor, accepted, refused) = (acceptor.clone(), accepted.clone(), refused.clone());
            let listener = newcomers.what();
            tokio::spawn(async move {
                let handshake = tokio::select! {
                    handshake = acceptor.accept(tcp) => handshake,
                    () = newcomer.out() => return,
                };
                match handshake {
                    Ok(tls) => {
                        // Closed only when the server stops.
                        let _ = accepted.send(Ok(Guarded::new(tls, newcomer))).await;
                    }
                    // Someone who only looked whether the port is open.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => {
                        if let Some(left_out) = refused.say() {
                            tracing::info!(listener, %from, %error, left_out, "no TLS connection");
                        }
                    }
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

/// The next connection; `None` once nobody wants it.
async fn next<T>(listener: &TcpListener, accepted: &mpsc::Sender<T>) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let next = tokio::select! {
            () = accepted.closed() => return None,
            next = listener.accept() => next,
        };
        match next {
            Ok((tcp, from)) => {
                // Gone already if this fails; reading will say so.
                let _ = tcp.set_nodelay(true);
                return Some((tcp, from));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}
