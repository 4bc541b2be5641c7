//! A page that shows what moves: pods as columns, servers as dots. Read-only, without a login, on the port of health and
//! metrics, so for whoever may `kubectl port-forward`.
//!
//! ```text
//!  driver (owns the world) ──Look, while someone looks──► Page (mirror) ──snapshot, deltas──► feeds ──SSE──► browsers
//! ```

mod mirror;
pub mod view;

use std::{
    convert::Infallible,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::{
    mirror::{Message, Mirror},
    view::Look,
};
use crate::{model::Now, world::World};

/// Looks at the world are so far apart.
pub const EVERY: Duration = Duration::from_millis(100);
/// Pages that are open at once.
const FEEDS: usize = 32;
/// Changes that wait for a slow reader; one that is further behind gets a new snapshot.
const BEHIND: usize = 8;
/// A reader that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// A comment is sent so often, so that a reader that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One file, so that nothing else need be loaded: its parts are put together once.
static HTML: LazyLock<String> = LazyLock::new(|| {
    let script = [include_str!("column.js"), include_str!("pool.js"), include_str!("page.js")].concat();
    include_str!("page.html").replace("STYLE", include_str!("page.css")).replace("SCRIPT", &script)
});
/// What the page has in place of the nonce.
const NONCE: &str = "NONCE";

/// Both ends: the driver's and the server's.
#[must_use]
pub fn new(stop: CancellationToken) -> (Lens, Page) {
    let (looks, incoming) = mpsc::channel(1);
    let feeds = Arc::new(Semaphore::new(FEEDS));
    let page = Page { feeds: feeds.clone(), mirror: Arc::default(), changes: broadcast::Sender::new(BEHIND), stop };
    tokio::spawn(keep(page.clone(), incoming));
    (Lens { feeds, looks }, page)
}

/// The driver's end.
#[derive(Debug)]
pub struct Lens {
    feeds: Arc<Semaphore>,
    looks: mpsc::Sender<Option<Look>>,
}

impl Lens {
    /// Whether anyone looks.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.feeds.available_permits() < FEEDS
    }

    /// Shows what changed, unless the look before is not taken in yet: then the changes wait for the next one.
    pub fn look(&self, world: &mut World, now: Now) {
        let Ok(slot) = self.looks.try_reserve() else { return };
        if !world.initialised_all() {
            return;
        }
        if self.is_used() {
            slot.send(Some(world.look(now)));
        } else if world.is_looked_at() {
            world.look_away();
            slot.send(None);
        }
    }
}

/// Some servers, and the last of them if more follow.
type Part = (Message, Option<String>);

/// The server's end.
#[derive(Clone, Debug)]
pub struct Page {
    feeds: Arc<Semaphore>,
    mirror: Arc<Mutex<Mirror>>,
    changes: broadcast::Sender<Arc<Message>>,
    stop: CancellationToken,
}

impl Page {
    /// The page, and its feed.
    pub fn routes(self) -> Router {
        Router::new().route("/", get(html)).route("/feed", get(feed)).with_state(self)
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes from now on, and all before them: the first part of it, and where the next one begins.
    fn begin(&self) -> (broadcast::Receiver<Arc<Message>>, Option<Part>) {
        let mirror = self.mirror();
        (self.changes.subscribe(), mirror.is_live().then(|| mirror.part(None)))
    }
}

async fn keep(page: Page, mut looks: mpsc::Receiver<Option<Look>>) {
    while let Some(look) = looks.recv().await {
        let mut mirror = page.mirror();
        match look {
            None => mirror.clear(),
            Some(look) => {
                if let Some(message) = mirror.apply(look) {
                    // Nobody may be there to receive it.
                    let _ = page.changes.send(Arc::new(message));
                }
            }
        }
    }
}

async fn html() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 6] = [
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (headers, HTML.replace(NONCE, &nonce)).into_response()
}

async fn feed(State(page): State<Page>) -> Response {
    let Ok(permit) = page.feeds.clone().try_acquire_owned() else {
        let sentence = format!("{FEEDS} pages are open already: close one, and reload");
        return (StatusCode::SERVICE_UNAVAILABLE, sentence).into_response();
    };
    let (events, to_send) = mpsc::channel(1);
    tokio::spawn(follow(page, events, permit));
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    let events = ReceiverStream::new(to_send)
        .map(|message: Arc<Message>| Ok::<_, Infallible>(Event::default().event(message.event).data(&message.data)));
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

type Events = mpsc::Sender<Arc<Message>>;

/// Feeds one reader until it or we stop.
async fn follow(page: Page, events: Events, _permit: OwnedSemaphorePermit) {
    let stop = page.stop.clone();
    let fed = async {
        // Each turn is a snapshot and the changes after it.
        while show(&page, &events).await.is_some() {}
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = events.closed() => {}
        () = fed => {}
    }
}

/// Sends everything, then changes, until the reader is too far behind; `None`: it takes no more.
async fn show(page: &Page, events: &Events) -> Option<()> {
    let (mut changes, mut part) = page.begin();
    while let Some((message, last)) = part {
        send(events, Arc::new(message)).await?;
        // What changed meanwhile may be told twice: the older word first, the newer one last.
        part = last.map(|last| page.mirror().part(Some(&last)));
    }
    loop {
        match changes.recv().await {
            Ok(message) => send(events, message).await?,
            Err(broadcast::error::RecvError::Lagged(_)) => return Some(()),
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

async fn send(events: &Events, message: Arc<Message>) -> Option<()> {
    timeout(PATIENCE, events.send(message)).await.ok()?.ok()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
