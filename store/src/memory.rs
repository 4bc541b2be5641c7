//! A store in memory, for tests. Its faults happen when the test says so and never by chance.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::objects::{Created, Listed, Objects, Part, StoreError};

/// What goes wrong with one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: this operation is let through, the next fault is for the next one.
    None,
    /// It is not done; the error is the answer.
    Fail(StoreError),
    /// It is done, but the answer is lost. For creates.
    LoseAnswer,
    /// The answer is "unknown" at once; it is done when the test calls [`Memory::release`]. For creates.
    Late,
    /// There is never an answer; it is done when the test calls [`Memory::release`]. For creates.
    Silent,
    /// The object is said not to exist, as after a stale listing. For reads.
    Absent,
}

/// The kind of operation a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Objects::create`]
    Create,
    /// [`Objects::get`]
    Get,
    /// [`Objects::list`]
    List,
    /// [`Objects::delete`]
    Delete,
}

#[derive(Debug, Default)]
struct Inner {
    /// With the time at which each was written.
    objects: BTreeMap<String, (Bytes, SystemTime)>,
    faults: BTreeMap<Operation, VecDeque<Fault>>,
    late: VecDeque<(String, Bytes)>,
    ignores_conditions: bool,
}

impl Inner {
    fn create(&mut self, key: &str, body: Bytes) -> Created {
        if self.objects.contains_key(key) && !self.ignores_conditions {
            return Created::Exists;
        }
        self.objects.insert(key.to_owned(), (body, SystemTime::now()));
        Created::Created
    }

    fn fault(&mut self, operation: Operation) -> Fault {
        self.faults.get_mut(&operation).and_then(VecDeque::pop_front).unwrap_or(Fault::None)
    }
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    inner: Mutex<Inner>,
}

impl Memory {
    /// A store like an old S3 server: `If-None-Match` means nothing to it.
    #[must_use]
    pub fn ignoring_conditions() -> Self {
        Self { inner: Mutex::new(Inner { ignores_conditions: true, ..Inner::default() }) }
    }

    /// The next operations of a kind meet these faults, one each, after those already waiting.
    pub fn inject(&self, operation: Operation, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.entry(operation).or_default().extend(faults);
    }

    /// Forgets the faults that did not happen yet.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Lets the oldest late create arrive; `None` if none is under way.
    pub fn release(&self) -> Option<Created> {
        let mut inner = self.lock();
        let (key, body) = inner.late.pop_front()?;
        Some(inner.create(&key, body))
    }

    /// All keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// What a key holds.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        self.lock().objects.get(key).map(|(body, _)| body.clone())
    }

    /// Puts bytes at a key by force, as a broken disk or a person would.
    pub fn force(&self, key: &str, body: Bytes) {
        self.lock().objects.insert(key.to_owned(), (body, SystemTime::now()));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> StoreError {
    StoreError::Unknown("the answer was lost".into())
}

#[async_trait]
impl Objects for Memory {
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        let silent = {
            let mut inner = self.lock();
            match inner.fault(Operation::Create) {
                Fault::None | Fault::Absent => return Ok(inner.create(key, body)),
                Fault::Fail(error) => return Err(error),
                Fault::LoseAnswer => {
                    inner.create(key, body);
                    false
                }
                fault @ (Fault::Late | Fault::Silent) => {
                    inner.late.push_back((key.to_owned(), body));
                    fault == Fault::Silent
                }
            }
        };
        if silent {
            std::future::pending::<()>().await;
        }
        Err(lost())
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        let mut inner = self.lock();
        match inner.fault(Operation::Get) {
            Fault::None => {}
            Fault::Absent => return Ok(None),
            Fault::Fail(error) => return Err(error),
            Fault::LoseAnswer | Fault::Late | Fault::Silent => return Err(lost()),
        }
        let Some((object, _)) = inner.objects.get(key) else { return Ok(None) };
        let length = object.len() as u64;
        match part {
            Part::Whole { max } if length > max => Err(StoreError::too_large(key, length, max)),
            Part::Whole { .. } => Ok(Some(object.clone())),
            Part::Start(first) => Ok(Some(object.slice(..usize::try_from(first.min(length)).unwrap_or(object.len())))),
        }
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut inner = self.lock();
        match inner.fault(Operation::List) {
            Fault::None | Fault::Absent => {}
            Fault::Fail(error) => return Err(error),
            Fault::LoseAnswer | Fault::Late | Fault::Silent => return Err(lost()),
        }
        let within = inner.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > start_after);
        let listed = |(key, (_, written)): (&String, &(Bytes, SystemTime))| Listed {
            key: key.clone(),
            modified: Some(*written),
        };
        Ok(within.take(limit).map(listed).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let mut inner = self.lock();
        match inner.fault(Operation::Delete) {
            Fault::Fail(error) => Err(error),
            Fault::LoseAnswer | Fault::Late | Fault::Silent => Err(lost()),
            Fault::None | Fault::Absent => {
                inner.objects.remove(key);
                Ok(())
            }
        }
    }
}
