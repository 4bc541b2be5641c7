//! Where every server of the pool is, as this pod's gateway sees it.
//!
//! Three sources know something of a server: this pod (what it holds), the directory (what the operator says), and
//! what was learnt from other pods since (a handoff from here, an answer from elsewhere). All three are kept, and the
//! route is derived from them by [`resolve`]: an update that says less than what is known is never lost, only
//! overruled.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use handoff::{Epoch, PodUid, ServerId, ServerUid};
use hyper::header::HeaderValue;
use tokio::sync::watch;

/// How a request reaches a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// This pod's host serves it.
    Here(Stamp),
    /// This pod has it, frozen, starting or stopping: requests wait.
    Held,
    /// Another pod has it.
    There {
        /// That pod.
        pod: PodUid,
        /// Its gateway.
        gateway: SocketAddr,
    },
    /// Nobody is known to have it: requests wait.
    Nowhere,
}

/// The headers that name a server to the host and to clients, made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `namespace/name`.
    pub server: HeaderValue,
    /// Resource uid.
    pub uid: HeaderValue,
    /// Ownership term.
    pub epoch: HeaderValue,
}

impl Stamp {
    fn new(id: &ServerId, epoch: Epoch) -> Self {
        // Names and uids from the API server are plain ASCII; should one not be, the host refuses the empty one.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        Self { server: value(id.to_string()), uid: value(id.uid.0.clone()), epoch: epoch.0.into() }
    }
}

/// One server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which server has the name.
    pub uid: ServerUid,
    /// The highest ownership term that this is known of.
    pub epoch: Epoch,
    /// How it is reached.
    pub way: Way,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub enum Found {
    /// A server has it.
    Known(Arc<Route>),
    /// No server has it: the directory is complete.
    Unknown,
    /// The directory is not complete yet.
    NotYet,
}

/// What the operator says of one server.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// In the pool's namespace.
    pub name: String,
    /// Resource uid.
    pub uid: ServerUid,
    /// 0: owned by nobody now.
    pub epoch: Epoch,
    /// Its owner.
    pub pod_uid: PodUid,
    /// The owner's gateway, if it has one.
    pub gateway: Option<SocketAddr>,
}

/// What changed in the directory.
#[derive(Clone, Debug, Default)]
pub struct DirectoryUpdate {
    /// Of the directory.
    pub version: u64,
    /// Whether it is the whole directory, and not a change to it.
    pub complete: bool,
    /// Servers that came or changed.
    pub entries: Vec<DirectoryEntry>,
    /// Names that no server has any more.
    pub removed: Vec<String>,
}

/// Every server's place. Cheap to clone; its lock is never held across an await.
#[derive(Clone)]
pub struct Routes(Arc<Inner>);

struct Inner {
    me: PodUid,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Box<str>, Entry>,
    /// Dropping a sender wakes who waits for a change to the name.
    waiting: HashMap<Box<str>, watch::Sender<()>>,
    complete: bool,
    version: u64,
}

struct Entry {
    known: Knowledge,
    route: Arc<Route>,
}

#[derive(Clone, Debug, Default)]
struct Knowledge {
    local: Option<Fact<Local>>,
    learnt: Option<Fact<Place>>,
    directory: Option<Fact<Place>>,
}

#[derive(Clone, Debug)]
struct Fact<T> {
    uid: ServerUid,
    epoch: Epoch,
    what: T,
}

#[derive(Clone, Debug)]
enum Local {
    Here(Stamp),
    Held,
}

#[derive(Clone, Debug)]
enum Place {
    There { pod: PodUid, gateway: SocketAddr },
    Me,
    Nobody,
}

impl Routes {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(me: PodUid) -> Self {
        Self(Arc::new(Inner { me, table: Mutex::default() }))
    }

    /// This pod serves it from now on.
    pub fn set_here(&self, id: &ServerId, epoch: Epoch) {
        let local = Fact { uid: id.uid.clone(), epoch, what: Local::Here(Stamp::new(id, epoch)) };
        self.table().change(&id.name, |known| known.local = Some(local));
    }

    /// This pod has it but does not serve it now: requests wait.
    pub fn hold(&self, id: &ServerId) {
        self.table().change(&id.name, |known| {
            let epoch = known.epoch_for_hold(&id.uid);
            known.local = Some(Fact { uid: id.uid.clone(), epoch, what: Local::Held });
        });
    }

    /// Another pod told, or was told by us, that it owns the server at this epoch. Ignored if something newer is known.
    pub fn set_there(&self, name: &str, uid: &ServerUid, epoch: Epoch, pod: PodUid, gateway: SocketAddr) {
        if pod == self.0.me {
            return;
        }
        self.table().change(name, |known| known.learn(uid, epoch, Place::There { pod, gateway }));
    }

    /// This pod has it no more, and does not know who does.
    pub fn release_local(&self, id: &ServerId) {
        self.table().change(&id.name, |known| {
            if let Some(local) = known.local.take_if(|local| local.uid == id.uid) {
                known.learn(&local.uid, local.epoch, Place::Nobody);
            }
        });
    }

    /// Takes an update of the directory.
    pub fn apply(&self, update: DirectoryUpdate) {
        let mut table = self.table();
        let mut removed = update.removed;
        if update.complete {
            let named: HashSet<&str> = update.entries.iter().map(|entry| entry.name.as_str()).collect();
            let gone = table.entries.keys().filter(|name| !named.contains(&***name));
            removed.extend(gone.map(ToString::to_string));
        }
        for name in removed {
            table.forget(&name);
        }
        for DirectoryEntry { name, uid, epoch, pod_uid, gateway } in update.entries {
            let what = match gateway {
                _ if pod_uid == self.0.me => Place::Me,
                Some(gateway) => Place::There { pod: pod_uid, gateway },
                None => Place::Nobody,
            };
            table.change(&name, |known| known.directory = Some(Fact { uid, epoch, what }));
        }
        table.version = update.version;
        if update.complete && !table.complete {
            table.complete = true;
            table.waiting.clear();
        }
    }

    /// Whether every server of the pool is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.table().complete
    }

    /// Version of the newest update taken; 0: none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table().version
    }

    /// What is known of a name now.
    #[must_use]
    pub fn find(&self, name: &str) -> Found {
        self.table().find(name)
    }

    /// Returns once what is known of a name is not what was `seen`, and now and then when it still is.
    pub async fn changed(&self, name: &str, seen: &Found) {
        if let Some(mut waiter) = self.waiter(name, seen) {
            // Nothing is ever sent: it ends when the sender is dropped.
            let _ = waiter.receiver.changed().await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiter(&self, name: &str, seen: &Found) -> Option<Waiter<'_>> {
        let mut table = self.table();
        let same = match (seen, &table.find(name)) {
            (Found::Known(seen), Found::Known(now)) => Arc::ptr_eq(seen, now),
            (Found::Unknown, Found::Unknown) | (Found::NotYet, Found::NotYet) => true,
            _ => false,
        };
        if !same {
            return None;
        }
        let receiver = match table.waiting.get(name) {
            Some(sender) => sender.subscribe(),
            None => table.waiting.entry(name.into()).or_default().subscribe(),
        };
        Some(Waiter { routes: self, name: name.into(), receiver })
    }
}

impl Table {
    fn find(&self, name: &str) -> Found {
        match self.entries.get(name) {
            Some(entry) => Found::Known(entry.route.clone()),
            None if self.complete => Found::Unknown,
            None => Found::NotYet,
        }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Knowledge)) {
        let mut known = self.entries.get_mut(name).map(|entry| std::mem::take(&mut entry.known)).unwrap_or_default();
        change(&mut known);
        let Some(route) = resolve(&known) else {
            if self.entries.remove(name).is_some() {
                self.waiting.remove(name);
            }
            return;
        };
        if let Some(entry) = self.entries.get_mut(name) {
            entry.known = known;
            if *entry.route == route {
                return;
            }
            entry.route = Arc::new(route);
        } else {
            self.entries.insert(name.into(), Entry { known, route: Arc::new(route) });
        }
        self.waiting.remove(name);
    }

    /// The resource is gone: only what this pod still holds of it counts.
    fn forget(&mut self, name: &str) {
        self.change(name, |known| {
            known.directory = None;
            if known.local.is_none() {
                known.learnt = None;
            }
        });
    }
}

impl Knowledge {
    /// A start does not know its epoch yet: it supersedes what is known now, and nothing later.
    fn epoch_for_hold(&self, uid: &ServerUid) -> Epoch {
        if let Some(local) = self.local.as_ref().filter(|local| local.uid == *uid) {
            return local.epoch;
        }
        let places = self.directory.iter().chain(&self.learnt);
        places.filter(|fact| fact.uid == *uid).map(|fact| fact.epoch).max().unwrap_or_default()
    }

    fn learn(&mut self, uid: &ServerUid, epoch: Epoch, what: Place) {
        if self.local.as_ref().is_some_and(|local| local.uid != *uid || local.epoch >= epoch) {
            return;
        }
        self.local = None;
        let other = self.directory.as_ref().is_some_and(|directory| directory.uid != *uid);
        let stale = self.learnt.as_ref().is_some_and(|learnt| learnt.uid == *uid && learnt.epoch >= epoch);
        if other || stale {
            return;
        }
        self.learnt = Some(Fact { uid: uid.clone(), epoch, what });
    }
}

/// The route that follows from what is known; `None` if nothing is.
///
/// - The directory alone knows which server has a name: a fact of another uid than the directory's does not count.
/// - Of facts about one server the one of the highest epoch counts; of the same epoch this pod's own before the
///   directory's, and the directory's before what was learnt.
/// - The directory naming this pod means that it is about to have it: what it holds counts, whatever its epoch.
fn resolve(known: &Knowledge) -> Option<Route> {
    let directory = known.directory.as_ref();
    let uid = directory
        .map(|fact| &fact.uid)
        .or(known.local.as_ref().map(|fact| &fact.uid))
        .or(known.learnt.as_ref().map(|fact| &fact.uid))?;
    let local = known.local.as_ref().filter(|fact| fact.uid == *uid);
    let learnt = known.learnt.as_ref().filter(|fact| fact.uid == *uid);
    let place = match (directory, learnt) {
        (Some(directory), Some(learnt)) if learnt.epoch > directory.epoch => Some(learnt),
        (Some(directory), _) => Some(directory),
        (None, learnt) => learnt,
    };
    let route = |epoch, way| Some(Route { uid: uid.clone(), epoch, way });
    match (local, place) {
        (Some(local), place) if place.is_none_or(|place| place.epoch <= local.epoch || place.is_me()) => {
            route(local.epoch, local.what.way())
        }
        (_, Some(place)) => route(place.epoch, place.what.way()),
        (_, None) => None,
    }
}

impl Fact<Place> {
    fn is_me(&self) -> bool {
        matches!(self.what, Place::Me)
    }
}

impl Local {
    fn way(&self) -> Way {
        match self {
            Self::Here(stamp) => Way::Here(stamp.clone()),
            Self::Held => Way::Held,
        }
    }
}

impl Place {
    fn way(&self) -> Way {
        match self {
            Self::There { pod, gateway } => Way::There { pod: pod.clone(), gateway: *gateway },
            Self::Me | Self::Nobody => Way::Nowhere,
        }
    }
}

struct Waiter<'a> {
    routes: &'a Routes,
    name: Box<str>,
    receiver: watch::Receiver<()>,
}

impl Drop for Waiter<'_> {
    /// Names that nobody waits for any more do not pile up. A sender made since wakes its waiter for nothing at worst.
    fn drop(&mut self) {
        let mut table = self.routes.table();
        if table.waiting.get(&self.name).is_some_and(|sender| sender.receiver_count() <= 1) {
            table.waiting.remove(&self.name);
        }
    }
}
