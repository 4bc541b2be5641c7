//! Who owns one server, and who may get it next. Pure.
//!
//! The index may be wrong: it is rebuilt from reports that cross each other. The log never is. So an assignment always
//! says what it supersedes, and only what is proven over is named; a claim over anything else is refused by the log, and
//! the refusal says what is true.

use std::{collections::BTreeSet, time::Duration};

use crds::Reason;
use handoff::{
    Epoch, Instant, PodUid,
    claim::{Over, Supersedes},
    lease::Heartbeat,
};
use wire::session::gone::How;

use crate::crashes::{Crashes, Verdict};

/// First wait after a failed assignment; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait between assignments.
const RETRY_LAST: Duration = Duration::from_secs(10);
/// Wait where only a person can help.
const RETRY_FATAL: Duration = Duration::from_mins(1);
/// An assignment that was not answered is sent to the same pod again after this time: it may have been taken for a repeat.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long an owner whose session is open may take to say that it holds what another said was handed to it.
const CROSSING: Duration = Duration::from_secs(1);

/// What is known of the newest term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// There was none.
    #[default]
    Never,
    /// Its owner says, in an open session, that it holds the server.
    Held,
    /// Its owner has not said so, or has no session.
    Unheard,
    /// Its owner wrote a Release.
    Released,
    /// Its owner does not hold it any more and never will again.
    Over,
}

/// A Grant of the newest term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whom it names.
    pub to: PodUid,
    /// That pod has said that it will never serve by it.
    pub over: bool,
}

/// An assignment that was not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its number.
    pub id: u64,
    /// Who is to carry it out.
    pub to: PodUid,
    /// When it was sent.
    pub since: Instant,
}

/// Why a server is where it should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
    /// It needs a person.
    pub fatal: bool,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// Its object is there.
    pub exists: bool,
    /// Its agent's session is open.
    pub session: bool,
    /// Every container of it was seen terminated, for good.
    pub over: bool,
    /// It was silent for a whole lease after this heartbeat: its time is over, unless it is found alive in the store.
    pub silent: Option<Heartbeat>,
}

/// Where an assignment may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// The best pod.
    Any,
    /// This one: it is asked before anybody else may have the server.
    Only(PodUid),
}

/// What to do about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is held.
    Nothing,
    /// Wait for an event, or for time to pass.
    Wait,
    /// Assign it.
    Assign(To, Option<Supersedes>),
}

/// What a report that a pod holds the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is the owner.
    Owner,
    /// It handed the server over and will say so by itself.
    Passing,
    /// Another owns a later term: it must stop.
    Stale,
}

/// Why an assignment failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The log is at another term.
    Refused {
        /// The newest.
        epoch: Epoch,
        /// Its owner.
        owner: PodUid,
        /// The pod that a Grant in it names.
        grantee: Option<PodUid>,
    },
    /// The pod cannot have it now, another may. It may have claimed this term all the same.
    Pod(Trouble, Option<Epoch>),
    /// No pod can have it now.
    Everywhere(Trouble),
}

/// The owner of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// The newest term known.
    pub epoch: Epoch,
    /// Its owner, if known.
    pub owner: Option<PodUid>,
    /// What is known of it.
    pub standing: Standing,
    /// A Grant that may have ended it.
    pub grant: Option<Grant>,
    /// An assignment under way.
    pub outstanding: Option<Outstanding>,
    /// Consecutive failed assignments.
    pub failures: u32,
    /// No assignment before this time.
    pub not_before: Instant,
    /// Pods that failed to start it since it last ran.
    pub avoid: BTreeSet<PodUid>,
    /// What the last failure was.
    pub trouble: Option<Trouble>,
    /// How often its host crashed.
    pub crashes: Crashes,
}

impl Ownership {
    /// What the resource's status says, read at the operator's start: true at some time in the past.
    #[must_use]
    pub fn recorded(epoch: Epoch, owner: Option<PodUid>) -> Self {
        let standing = if epoch == Epoch::NONE && owner.is_none() { Standing::Never } else { Standing::Unheard };
        Self { epoch, owner, standing, ..Self::default() }
    }

    /// What to do now.
    pub fn next(&self, now: Instant, view: impl Fn(&PodUid) -> PodView) -> Next {
        if self.standing == Standing::Held {
            return Next::Nothing;
        }
        if let Some(outstanding) = &self.outstanding {
            let pod = view(&outstanding.to);
            let due = outstanding.since + ASK_AGAIN;
            if pod.session && due <= now {
                return match self.by_standing(view) {
                    Next::Assign(_, supersedes) => Next::Assign(To::Only(outstanding.to.clone()), supersedes),
                    wait => wait,
                };
            }
            if pod.session || (pod.exists && !pod.over && pod.silent.is_none()) {
                return Next::Wait;
            }
        }
        if now < self.not_before {
            return Next::Wait;
        }
        self.by_standing(view)
    }

    fn by_standing(&self, view: impl Fn(&PodUid) -> PodView) -> Next {
        match self.standing {
            Standing::Held => Next::Nothing,
            Standing::Never => Next::Assign(To::Any, None),
            Standing::Released => self.assign_over(None, None),
            Standing::Over => self.after_the_owner(None, view),
            Standing::Unheard => self.without_word(view),
        }
    }

    /// The owner is over, for certain or by its silence; a grantee may not be.
    fn after_the_owner(&self, silent: Option<Heartbeat>, view: impl Fn(&PodUid) -> PodView) -> Next {
        let Some(grant) = &self.grant else { return self.assign_over(silent, None) };
        let grantee = view(&grant.to);
        if grant.over || grantee.over {
            return self.assign_over(silent, Some(grant.to.clone().into()));
        }
        if grantee.session {
            return Next::Assign(To::Only(grant.to.clone()), self.supersedes(silent, None));
        }
        if grantee.silent.is_some() {
            return self.assign_over(silent, Some(Over { pod: grant.to.clone(), silent: grantee.silent }));
        }
        Next::Wait
    }

    /// Nothing is proven, unless the owner's pod is.
    fn without_word(&self, view: impl Fn(&PodUid) -> PodView) -> Next {
        let Some(owner) = &self.owner else { return Next::Assign(To::Any, None) };
        let pod = view(owner);
        if pod.over || pod.silent.is_some() {
            return self.after_the_owner(pod.silent.filter(|_| !pod.over), view);
        }
        if pod.session {
            // Its own word may be on its way: what it answers comes after that.
            return Next::Assign(To::Only(owner.clone()), self.supersedes(None, None));
        }
        if pod.exists {
            return Next::Wait;
        }
        // Its object alone is gone, which proves nothing. Naming nothing, the claim succeeds over a Release only.
        Next::Assign(To::Any, None)
    }

    fn assign_over(&self, silent: Option<Heartbeat>, grantee: Option<Over>) -> Next {
        Next::Assign(To::Any, self.supersedes(silent, grantee))
    }

    fn supersedes(&self, silent: Option<Heartbeat>, grantee: Option<Over>) -> Option<Supersedes> {
        if self.epoch == Epoch::NONE {
            return None;
        }
        let owner = Over { pod: self.owner.clone().unwrap_or_default(), silent };
        Some(Supersedes { epoch: self.epoch, owner, grantee })
    }

    /// An assignment was sent.
    pub fn assigned(&mut self, outstanding: Outstanding) {
        self.outstanding = Some(outstanding);
    }

    /// A pod says, in an open session, that it holds the server in this term.
    pub fn held(&mut self, pod: &PodUid, epoch: Epoch) -> Claimed {
        if epoch < self.epoch {
            // The source of a handoff says so until it knows that the target's record is written.
            return if epoch.handed_off() == self.epoch { Claimed::Passing } else { Claimed::Stale };
        }
        // An assignment to another pod is refused by the log from now on.
        let crashes = std::mem::take(&mut self.crashes);
        *self = Self { epoch, owner: Some(pod.clone()), standing: Standing::Held, crashes, ..Self::default() };
        Claimed::Owner
    }

    /// A pod says that it holds the server no more, or disclaims it. Whether that changes anything.
    pub fn gone(&mut self, pod: &PodUid, epoch: Epoch, how: How, grantee: Option<PodUid>, now: Instant) -> bool {
        // Whoever was assigned it may have claimed it, and given it up before it ever said that it held it.
        let claimed = self.standing != Standing::Held && self.outstanding.as_ref().is_some_and(|o| o.to == *pod);
        let owner = self.owner.as_ref() == Some(pod) || (claimed && epoch > self.epoch);
        if let Some(grant) = self.grant.as_mut().filter(|grant| grant.to == *pod)
            && matches!(how, How::Disclaimed | How::Crashed)
            && epoch >= self.epoch.handed_off()
        {
            grant.over = true;
            self.again();
            return true;
        }
        if epoch < self.epoch {
            return false;
        }
        match how {
            How::Released => self.ended(pod, epoch, Standing::Released, None),
            How::HandedOff => {
                self.ended(pod, epoch, Standing::Unheard, None);
                self.epoch = epoch.handed_off();
                self.owner = grantee;
                self.not_before = now + CROSSING;
            }
            How::Disclaimed | How::Crashed if owner => {
                let grant = grantee.map(|to| Grant { to, over: false });
                self.ended(pod, epoch, Standing::Over, grant);
            }
            How::Fenced if owner => self.ended(pod, epoch, Standing::Over, None),
            How::Disclaimed | How::Crashed | How::Fenced | How::Unspecified => return false,
        }
        true
    }

    /// Its host crashed under it: it is started again, if need be later.
    pub fn crashed(&mut self, now: Instant) {
        match self.crashes.add(now) {
            Verdict::Again(at) => self.not_before = at,
            Verdict::Park(until) => {
                self.not_before = until;
                self.trouble = Some(Trouble {
                    reason: Reason::HostCrashes,
                    message: "its host crashed five times within an hour while it ran there, and it may be the cause: read \
                              the host's log of before its last restart, and mend it. It is started again when its spec \
                              changes, such as by setting spec.cordoned to true and back, or after the hour"
                        .into(),
                    fatal: true,
                });
            }
        }
    }

    /// A person changed its spec: what was held against it counts no more.
    pub fn edited(&mut self) {
        self.crashes = Crashes::default();
        self.again();
    }

    /// Where it is best started: after a crash in the pod where it was, so that what brings hosts down stays in one place.
    #[must_use]
    pub fn home(&self) -> Option<&PodUid> {
        self.owner.as_ref().filter(|_| self.crashes != Crashes::default())
    }

    fn ended(&mut self, pod: &PodUid, epoch: Epoch, standing: Standing, grant: Option<Grant>) {
        self.owner = Some(pod.clone());
        self.epoch = epoch;
        self.standing = standing;
        self.grant = grant;
        self.again();
    }

    /// Something was learnt: what failed before may succeed now.
    fn again(&mut self) {
        self.failures = 0;
        self.not_before = Instant::default();
        self.trouble = None;
    }

    /// A pod can host now. One that has not failed to start this server need not wait for those that have.
    pub fn came(&mut self, pod: &PodUid) {
        if !self.avoid.is_empty() && !self.avoid.contains(pod) {
            self.not_before = Instant::default();
        }
    }

    /// A pod opened a session whose inventory has not this server. Whether that changes anything.
    pub fn absent(&mut self, pod: &PodUid) -> bool {
        let lost = self.outstanding.take_if(|outstanding| outstanding.to == *pod).is_some();
        let held = matches!(self.standing, Standing::Held | Standing::Unheard) && self.owner.as_ref() == Some(pod);
        if held {
            self.standing = Standing::Over;
            self.again();
        }
        lost || held
    }

    /// A pod's session is gone: what it held it may hold still.
    pub fn silent(&mut self, pod: &PodUid) {
        if self.standing == Standing::Held && self.owner.as_ref() == Some(pod) {
            self.standing = Standing::Unheard;
        }
    }

    /// A pod could not carry out an assignment; `jitter` in 0..1. Whether it was one of ours that was still awaited.
    pub fn failed(&mut self, pod: &PodUid, id: u64, failure: Failure, now: Instant, jitter: f64) -> bool {
        if self.outstanding.take_if(|o| o.id == id && o.to == *pod).is_none() {
            return false;
        }
        if self.standing == Standing::Held {
            return true;
        }
        match failure {
            Failure::Refused { epoch, owner, grantee } => self.refused(epoch, owner, grantee, now, jitter),
            Failure::Pod(trouble, claimed) => {
                self.avoid.insert(pod.clone());
                if let Some(epoch) = claimed.filter(|epoch| *epoch > self.epoch) {
                    self.epoch = epoch;
                    self.owner = Some(pod.clone());
                    self.standing = Standing::Over;
                    self.grant = None;
                } else if self.standing == Standing::Unheard && self.owner.as_ref() == Some(pod) {
                    // Asked as the owner, it would have said that it holds it.
                    self.standing = Standing::Over;
                }
                self.wait(trouble, now, jitter);
            }
            Failure::Everywhere(trouble) => self.wait(trouble, now, jitter),
        }
        true
    }

    fn refused(&mut self, epoch: Epoch, owner: PodUid, grantee: Option<PodUid>, now: Instant, jitter: f64) {
        let message = format!(
            "the log is at epoch {epoch} of pod {owner}; the server waits until that pod holds it again, gives it up, or is \
             known to be over"
        );
        let trouble = Trouble { reason: Reason::OwnedElsewhere, message, fatal: false };
        let grant = grantee.map(|to| Grant { over: self.grant.as_ref().is_some_and(|g| g.over && g.to == to), to });
        let same = self.epoch == epoch && self.owner.as_ref() == Some(&owner);
        let news = !same || self.grant != grant;
        if !same {
            self.standing = Standing::Unheard;
            self.epoch = epoch;
            self.owner = Some(owner);
        }
        self.grant = grant;
        let first = self.failures == 0;
        self.wait(trouble, now, jitter);
        if news && first {
            // The usual case is an index that was behind and is right now.
            self.not_before = now;
        }
    }

    fn wait(&mut self, trouble: Trouble, now: Instant, jitter: f64) {
        let delay = if trouble.fatal {
            RETRY_FATAL
        } else {
            RETRY_FIRST.saturating_mul(1 << self.failures.min(6)).min(RETRY_LAST)
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + delay.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0);
        self.trouble = Some(trouble);
    }
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
