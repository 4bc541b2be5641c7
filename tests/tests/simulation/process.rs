//! A process that can be killed, and that can sleep for longer than it wanted to; and the clock of its machine.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, Sleep, sleep_until},
};

use crate::lock;

/// Everything that one process does.
#[derive(Default)]
pub struct Process {
    tasks: Mutex<JoinSet<()>>,
    asleep_until: Mutex<Option<Instant>>,
    dead: Mutex<bool>,
}

impl Process {
    /// Does this until it is done or the process is dead; nothing of it while the process sleeps.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let work = Gated { process: self.clone(), work: Box::pin(work), sleep: None };
        if !self.is_dead() {
            let mut tasks = lock(&self.tasks);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(work);
        }
    }

    pub fn kill(&self) {
        *lock(&self.dead) = true;
        lock(&self.tasks).abort_all();
    }

    pub fn is_dead(&self) -> bool {
        *lock(&self.dead)
    }

    pub fn sleep_until(&self, until: Instant) {
        let mut asleep = lock(&self.asleep_until);
        *asleep = (*asleep).max(Some(until));
    }

    /// Until when it sleeps, if it does.
    pub fn asleep(&self) -> Option<Instant> {
        lock(&self.asleep_until).filter(|until| *until > Instant::now())
    }
}

/// Work that is not looked at while its process sleeps: what came meanwhile is all there when it wakes.
struct Gated {
    process: Arc<Process>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.process.is_dead() {
            return Poll::Ready(());
        }
        while let Some(until) = self.process.asleep() {
            let mut sleep = Box::pin(sleep_until(until));
            if sleep.as_mut().poll(context).is_pending() {
                self.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
        self.sleep = None;
        self.work.as_mut().poll(context)
    }
}

/// The clock of one machine: where it began and how fast it goes is its own.
#[derive(Clone, Copy)]
pub struct Clock {
    begin: Instant,
    offset: Duration,
    /// Parts in a million that it is too fast.
    ppm: i64,
}

impl Clock {
    pub fn new(offset: Duration, ppm: i64) -> Self {
        Self { begin: Instant::now(), offset, ppm }
    }

    pub fn now(&self) -> handoff::Instant {
        handoff::Instant(self.offset + scale(self.begin.elapsed(), 1_000_000 + self.ppm, 1_000_000))
    }

    /// When the world reaches this time of this clock.
    pub fn at(&self, instant: handoff::Instant) -> Instant {
        let since = instant.0.saturating_sub(self.offset);
        self.begin + scale(since, 1_000_000, 1_000_000 + self.ppm) + Duration::from_micros(1)
    }
}

fn scale(duration: Duration, by: i64, of: i64) -> Duration {
    let nanos = i128::try_from(duration.as_nanos()).unwrap_or_default() * i128::from(by) / i128::from(of);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}
