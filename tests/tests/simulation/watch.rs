//! A value that changes, and those who wait for that. They are woken in the order in which they began to wait; tokio's own
//! wakes them in an order that it draws, and a seed would not tell all.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::lock;

struct Shared<T> {
    /// How often it changed, and what it is.
    value: Mutex<(u64, T)>,
    changed: Notify,
}

/// Who changes it.
pub struct Sender<T>(Arc<Shared<T>>);

/// Who waits for changes.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T: Default + Clone> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Clone> Sender<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: Mutex::new((0, value)), changed: Notify::new() }))
    }

    pub fn get(&self) -> T {
        lock(&self.0.value).1.clone()
    }

    /// Sets it, and says so to all who wait. What it was.
    pub fn replace(&self, value: T) -> T {
        let before = {
            let mut current = lock(&self.0.value);
            current.0 += 1;
            std::mem::replace(&mut current.1, value)
        };
        self.0.changed.notify_waiters();
        before
    }

    /// Sets it, if it is another. Whether it was.
    pub fn set(&self, value: T) -> bool
    where
        T: PartialEq,
    {
        let news = lock(&self.0.value).1 != value;
        if news {
            self.replace(value);
        }
        news
    }

    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: self.0.clone(), seen: lock(&self.0.value).0 }
    }

    /// Whether nobody waits any more.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<T: Clone> Receiver<T> {
    pub fn get(&self) -> T {
        lock(&self.shared.value).1.clone()
    }

    /// What it is now; a change is one from this.
    pub fn see(&mut self) -> T {
        let current = lock(&self.shared.value);
        self.seen = current.0;
        current.1.clone()
    }

    /// Returns once it is another than was seen last.
    pub async fn changed(&mut self) {
        let seen = self.seen;
        self.until(|changes, _| changes != seen).await;
    }

    /// Returns it once it is as wanted.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) -> T {
        self.until(|_, value| wanted(value)).await
    }

    async fn until(&mut self, over: impl Fn(u64, &T) -> bool) -> T {
        loop {
            let changed = self.shared.changed.notified();
            {
                let current = lock(&self.shared.value);
                self.seen = current.0;
                if over(current.0, &current.1) {
                    return current.1.clone();
                }
            }
            changed.await;
        }
    }
}
