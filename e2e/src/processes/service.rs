//! What a Service does for its pods: one address, behind which whoever is there answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Passes connections on until it is dropped.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    backends: Backends,
    server: JoinHandle<()>,
}

/// The one that is next comes first.
type Backends = Arc<Mutex<Vec<SocketAddr>>>;

impl Service {
    /// A Service that nobody is behind yet.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, backends) = (listener.local_addr()?, Backends::default());
        let server = tokio::spawn(serve(listener, Arc::clone(&backends)));
        Ok(Self { address, backends, server })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections go to these.
    pub fn lead_to(&self, backends: Vec<SocketAddr>) {
        let mut known = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|backend| backends.contains(backend));
        let new = backends.into_iter().filter(|backend| !known.contains(backend)).collect::<Vec<_>>();
        known.extend(new);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, backends: Backends) {
    // A listener of ours fails only when the machine has no more files; then the test fails by its own limits.
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(pass_on(client, Arc::clone(&backends)));
    }
}

/// One that refuses is not asked again by this connection; one that sleeps is not noticed.
async fn pass_on(mut client: TcpStream, backends: Backends) {
    let tries = locked(&backends, |all| all.len());
    for _ in 0..tries {
        let next = locked(&backends, |all| {
            let next = all.first().copied();
            if !all.is_empty() {
                all.rotate_left(1);
            }
            next
        });
        let Some(backend) = next else { return };
        if let Ok(mut server) = TcpStream::connect(backend).await {
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // How it ended is for those on both ends.
            let _ = copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}

fn locked<T>(backends: &Backends, look: impl FnOnce(&mut Vec<SocketAddr>) -> T) -> T {
    look(&mut backends.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_refuses_is_passed_over() {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let service = Service::open().await.unwrap();
        service.lead_to(vec![gone, there.local_addr().unwrap()]);
        let mut client = TcpStream::connect(service.address()).await.unwrap();
        drop(there.accept().await.unwrap());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        service.lead_to(Vec::new());
        let mut client = TcpStream::connect(service.address()).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "nobody is there");
    }
}
