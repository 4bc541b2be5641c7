//! One server's life in this host, in the order that the agent's calls have, whatever order they arrive in.
//!
//! ```text
//!            start standby            activate            freeze
//!  (nothing) ────────────→ Standby ───────────→ Active ⇄ Frozen
//!      │                                          ↑  thaw
//!      └──────────── start active ────────────────┘        stop: from anywhere back to nothing
//! ```
//!
//! `slot` is held for the whole of a handler, of a transition and of a serialisation, so these never overlap.
//! `meta` is held for an instant only, and changes only under `slot`, except for what [`Cell::admit`] notes.

mod handling;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard};

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::{
    agent::Agent,
    answer::Refusal,
    headers::{Given, Mark, Order, Since},
    lease::Lease,
    observer::{EndReason, Observer},
    server::{AnyServer, Kind, ServerName, State},
};

/// What all servers of a host share.
pub(crate) struct Surroundings {
    /// A random number of this process, below 2^53.
    pub instance: u64,
    pub agent: Arc<Agent>,
    pub observer: Box<dyn Observer>,
    pub lease: Lease,
}

/// What `start` is told.
pub(crate) struct Start {
    pub order: Order,
    pub name: ServerName,
    pub kind: Arc<Kind>,
    pub config: Option<Value>,
    pub given: Given,
    pub mode: Mode,
}

/// How to start.
pub(crate) enum Mode {
    Active,
    /// With the mark that the state came with, if there is a state: an activation may name it.
    Standby(Option<Mark>),
}

/// A line of the list of servers.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    uid: String,
    server: String,
    r#type: &'static str,
    epoch: u64,
    generation: u64,
    phase: &'static str,
    revision: u64,
}

/// What `snapshot` and `freeze` answer.
pub(crate) enum Taken {
    Full { mark: Mark, version: u32, body: Bytes },
    Unchanged(Mark),
}

#[derive(Clone)]
enum Phase {
    Standby { mark: Option<Mark>, config: Option<Value> },
    Active,
    Frozen,
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Standby { .. } => "standby",
            Self::Active => "active",
            Self::Frozen => "frozen",
        }
    }
}

struct Term {
    name: Arc<ServerName>,
    kind: Arc<Kind>,
    epoch: u64,
    /// Of the lease under which it was started.
    generation: u64,
    phase: Phase,
}

struct Meta {
    /// The highest order of any control call.
    seen: Order,
    /// A freeze or stop waits for the handler under way: requests that wait too must not run before it.
    closed: bool,
    term: Option<Term>,
    /// Never goes back while the process lives, so that no mark ever names two states.
    revision: u64,
    /// Whether this revision was written down, or read: then it is known by bytes of this checksum.
    written: bool,
    checksum: u32,
}

pub(crate) struct Cell {
    uid: String,
    meta: Mutex<Meta>,
    slot: AsyncMutex<Option<Box<dyn AnyServer>>>,
    /// A control call has its turn.
    turned: Notify,
}

impl Cell {
    pub(crate) fn new(uid: String, revision: u64) -> Self {
        let meta = Meta { seen: Order::default(), closed: false, term: None, revision, written: false, checksum: 0 };
        Self { uid, meta: Mutex::new(meta), slot: AsyncMutex::new(None), turned: Notify::new() }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.meta().revision
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.meta().term.is_none()
    }

    pub(crate) fn line(&self) -> Option<Line> {
        let meta = self.meta();
        let term = meta.term.as_ref()?;
        Some(Line {
            uid: self.uid.clone(),
            server: term.name.to_string(),
            r#type: term.kind.name,
            epoch: term.epoch,
            generation: term.generation,
            phase: term.phase.name(),
            revision: meta.revision,
        })
    }

    pub(crate) async fn start(&self, start: Start, around: &Surroundings) -> Result<Mark, Refusal> {
        let Start { order, name, kind, config, given, mode } = start;
        self.admit(order, false, around)?;
        let mut slot = self.slot.lock().await;
        let _passes = self.take_turn(order, around)?;
        let generation = around.lease.begin()?;
        self.end_older(generation, &mut slot, around);
        if let Some(term) = &self.meta().term {
            let (phase, epoch) = (term.phase.name(), term.epoch);
            return Err(Refusal::conflict(format!("it is {phase} here already, at epoch {epoch}: stop it first")));
        }
        let (state, checksum) = match given {
            Given::Full { version, body, checksum } => (Some(State { version, body }), Some(checksum)),
            Given::None => (None, None),
            Given::Unchanged(_) => return Err(Refusal::bad_request("a start needs the state itself, or none")),
        };
        let phase = match mode {
            Mode::Active => Phase::Active,
            Mode::Standby(mark) => Phase::Standby { mark, config: config.clone() },
        };
        let server = kind.load(&name, config, state)?;
        let checksum = checksum.unwrap_or_else(|| crc32fast::hash(&server.snapshot()));
        if matches!(phase, Phase::Active) {
            around.observer.begin(&name, order.epoch);
        }
        *slot = Some(server);
        self.loaded(checksum);
        self.meta().term = Some(Term { name: Arc::new(name), kind, epoch: order.epoch, generation, phase });
        Ok(self.mark(around))
    }

    pub(crate) async fn activate(&self, order: Order, given: Given, around: &Surroundings) -> Result<Mark, Refusal> {
        self.admit(order, false, around)?;
        let mut slot = self.slot.lock().await;
        let _passes = self.take_turn(order, around)?;
        let (name, kind, phase) = self.term_of(order.epoch)?;
        let Phase::Standby { mark: standby, config } = phase else {
            return Err(Refusal::conflict(format!("it is {}, not standby", phase.name())));
        };
        around.lease.check(self.generation())?;
        match given {
            Given::Full { version, body, checksum } => {
                *slot = Some(kind.load(&name, config, Some(State { version, body }))?);
                self.loaded(checksum);
            }
            Given::Unchanged(mark) if standby == Some(mark) => {}
            Given::Unchanged(_) => return Err(Refusal::conflict("the standby here is not of that state")),
            Given::None => {
                return Err(Refusal::bad_request("an activation needs the state, or the mark of the standby's"));
            }
        }
        around.observer.begin(&name, order.epoch);
        self.enter(Phase::Active);
        Ok(self.mark(around))
    }

    pub(crate) async fn snapshot(
        &self,
        epoch: u64,
        since: Option<Since>,
        around: &Surroundings,
    ) -> Result<Taken, Refusal> {
        let slot = self.slot.lock().await;
        let seen = self.meta().seen;
        if epoch < seen.epoch {
            return Err(too_late(seen));
        }
        let (_, kind, phase) = self.term_of(epoch)?;
        if matches!(phase, Phase::Standby { .. }) {
            return Err(Refusal::conflict("it is standby: its state is the one that it was given"));
        }
        self.take(slot.as_deref(), &kind, since, around)
    }

    pub(crate) async fn freeze(
        &self,
        order: Order,
        since: Option<Since>,
        around: &Surroundings,
    ) -> Result<Taken, Refusal> {
        self.admit(order, true, around)?;
        let slot = self.slot.lock().await;
        let _passes = self.take_turn(order, around)?;
        let (name, kind, phase) = self.term_of(order.epoch)?;
        match phase {
            Phase::Standby { .. } => Err(Refusal::conflict("it is standby: there is nothing to freeze")),
            Phase::Active => {
                self.enter(Phase::Frozen);
                around.observer.end(&name, order.epoch, EndReason::Frozen);
                let taken = self.take(slot.as_deref(), &kind, since, around);
                if let Some(server) = slot.as_deref() {
                    server.freeze();
                }
                taken
            }
            Phase::Frozen => self.take(slot.as_deref(), &kind, since, around),
        }
    }

    /// Thawing what is active is no error: whoever gave a freeze up does not know whether it happened.
    pub(crate) async fn thaw(&self, order: Order, around: &Surroundings) -> Result<(), Refusal> {
        self.admit(order, false, around)?;
        let _slot = self.slot.lock().await;
        let _passes = self.take_turn(order, around)?;
        let (name, _, phase) = self.term_of(order.epoch)?;
        match phase {
            Phase::Standby { .. } => Err(Refusal::conflict("it is standby: activate it")),
            Phase::Active => Ok(()),
            Phase::Frozen => {
                around.lease.check(self.generation())?;
                around.observer.begin(&name, order.epoch);
                self.enter(Phase::Active);
                Ok(())
            }
        }
    }

    pub(crate) async fn stop(&self, order: Order, around: &Surroundings) -> Result<(), Refusal> {
        self.admit(order, true, around)?;
        let mut slot = self.slot.lock().await;
        let _passes = self.take_turn(order, around)?;
        self.forget(&mut slot, EndReason::Stopped, around);
        Ok(())
    }

    /// Ends what serves under a lease that is over: its state stays, for an agent that asks in time. While a handler runs
    /// this does nothing: its answer is refused when it ends.
    pub(crate) fn expire(&self, around: &Surroundings) {
        let is_over = || {
            let meta = self.meta();
            let active = meta.term.as_ref().filter(|term| matches!(term.phase, Phase::Active));
            active.filter(|term| !around.lease.allows(term.generation)).map(|term| (Arc::clone(&term.name), term.epoch))
        };
        if let Ok(_slot) = self.slot.try_lock()
            && let Some((name, epoch)) = is_over()
        {
            self.enter(Phase::Frozen);
            around.observer.end(&name, epoch, EndReason::LeaseOver);
        }
    }

    /// The process ends. A handler that does not end is not waited for: the kernel ends it.
    pub(crate) fn exit(&self, around: &Surroundings) {
        if let Ok(mut slot) = self.slot.try_lock() {
            self.forget(&mut slot, EndReason::Exit, around);
        }
    }

    /// Notes a control call, unless a later one has been here. `closes`: from now on no request may run before it.
    fn admit(&self, order: Order, closes: bool, around: &Surroundings) -> Result<(), Refusal> {
        let _passes = around.lease.pass(order)?;
        let mut meta = self.meta();
        if order < meta.seen {
            return Err(too_late(meta.seen));
        }
        meta.seen = order;
        meta.closed = closes;
        Ok(())
    }

    /// Under `slot`: it is this call's turn, unless it was overtaken while it waited, or its agent is gone since.
    fn take_turn<'a>(&self, order: Order, around: &'a Surroundings) -> Result<RwLockReadGuard<'a, ()>, Refusal> {
        let mut meta = self.meta();
        if order < meta.seen {
            return Err(too_late(meta.seen));
        }
        meta.closed = false;
        drop(meta);
        // They look again once the slot is free.
        self.turned.notify_waiters();
        around.lease.pass(order)
    }

    fn term_of(&self, epoch: u64) -> Result<(Arc<ServerName>, Arc<Kind>, Phase), Refusal> {
        let meta = self.meta();
        let term = meta.term.as_ref().ok_or_else(|| Refusal::no_such_server(&self.uid))?;
        if term.epoch != epoch {
            let sentence = format!("it is here at epoch {}, not {epoch}", term.epoch);
            return Err(Refusal::conflict(sentence));
        }
        Ok((Arc::clone(&term.name), Arc::clone(&term.kind), term.phase.clone()))
    }

    fn serving(&self, epoch: u64, lease: &Lease) -> Option<Arc<ServerName>> {
        let meta = self.meta();
        let term = meta.term.as_ref()?;
        let serves = !meta.closed && term.epoch == epoch && matches!(term.phase, Phase::Active);
        (serves && lease.allows(term.generation)).then(|| Arc::clone(&term.name))
    }

    fn generation(&self) -> u64 {
        self.meta().term.as_ref().map(|term| term.generation).unwrap_or_default()
    }

    /// What an earlier generation left here is not in the way of what a later one starts.
    fn end_older(&self, generation: u64, slot: &mut Option<Box<dyn AnyServer>>, around: &Surroundings) {
        if self.meta().term.as_ref().is_some_and(|term| term.generation < generation) {
            self.forget(slot, EndReason::LeaseOver, around);
        }
    }

    fn enter(&self, phase: Phase) {
        if let Some(term) = &mut self.meta().term {
            term.phase = phase;
        }
    }

    /// A new state: a new revision, known by the bytes that it was read from.
    fn loaded(&self, checksum: u32) {
        let mut meta = self.meta();
        meta.revision += 1;
        meta.checksum = checksum;
        meta.written = true;
    }

    fn mark(&self, around: &Surroundings) -> Mark {
        let meta = self.meta();
        Mark { instance: around.instance, revision: meta.revision, checksum: meta.checksum }
    }

    fn take(
        &self,
        server: Option<&dyn AnyServer>,
        kind: &Kind,
        since: Option<Since>,
        around: &Surroundings,
    ) -> Result<Taken, Refusal> {
        let now = self.mark(around);
        if self.meta().written && since == Some(Since { instance: now.instance, revision: now.revision }) {
            return Ok(Taken::Unchanged(now));
        }
        let body = server.ok_or_else(|| Refusal::no_such_server(&self.uid))?.snapshot();
        self.written(crc32fast::hash(&body));
        Ok(Taken::Full { mark: self.mark(around), version: kind.version, body })
    }

    /// A mark names one sequence of bytes only: a state that was read from other bytes (an older version, another
    /// order of keys) gets a new revision.
    fn written(&self, checksum: u32) {
        let mut meta = self.meta();
        if meta.written && meta.checksum != checksum {
            meta.revision += 1;
        }
        meta.checksum = checksum;
        meta.written = true;
    }

    fn forget(&self, slot: &mut Option<Box<dyn AnyServer>>, reason: EndReason, around: &Surroundings) {
        let term = self.meta().term.take();
        if let Some(Term { name, epoch, phase: Phase::Active, .. }) = term {
            around.observer.end(&name, epoch, reason);
        }
        *slot = None;
    }

    fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_late(seen: Order) -> Refusal {
    let sentence = format!("a later call was seen: epoch {}, attempt {}", seen.epoch, seen.attempt);
    Refusal::new(StatusCode::PRECONDITION_FAILED, sentence)
}
