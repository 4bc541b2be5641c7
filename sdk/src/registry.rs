//! The cells of a host by uid, those of stopped servers among them for their memory of calls.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::cell::Cell;

/// So many cells that serve nothing are kept, a few hundred bytes each.
const MAX_IDLE: usize = 100_000;

#[derive(Default)]
struct Cells {
    by_uid: HashMap<String, Arc<Cell>>,
    /// Uids whose cell was idle once, the longest ago first; each at most once.
    idle: VecDeque<String>,
    /// The highest revision of any cell that was let go: a new one begins above it, in case it is the same server.
    floor: u64,
}

#[derive(Default)]
pub(crate) struct Registry(RwLock<Cells>);

impl Registry {
    pub(crate) fn find(&self, uid: &str) -> Option<Arc<Cell>> {
        self.read().by_uid.get(uid).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Cell>> {
        self.read().by_uid.values().cloned().collect()
    }

    /// The cell of this uid, an idle one if there was none.
    pub(crate) fn obtain(&self, uid: &str) -> Arc<Cell> {
        if let Some(cell) = self.find(uid) {
            return cell;
        }
        let mut cells = self.write();
        let floor = cells.floor;
        if !cells.by_uid.contains_key(uid) {
            cells.idle.push_back(uid.to_owned());
        }
        let cell = cells.by_uid.entry(uid.to_owned()).or_insert_with(|| Arc::new(Cell::new(uid.to_owned(), floor)));
        let cell = Arc::clone(cell);
        cells.let_go(MAX_IDLE);
        cell
    }

    fn read(&self) -> RwLockReadGuard<'_, Cells> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Cells> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cells {
    /// Lets the oldest idle cells go while there are more than `limit`; one look at each cell at most.
    fn let_go(&mut self, limit: usize) {
        for _ in 0..self.idle.len() {
            if self.by_uid.len() <= limit {
                return;
            }
            let Some(uid) = self.idle.pop_front() else { return };
            // Nobody can take a cell up while this table is locked: a sole owner is this table.
            match self.by_uid.get(&uid) {
                Some(cell) if cell.is_idle() && Arc::strong_count(cell) == 1 => {
                    self.floor = self.floor.max(cell.revision());
                    self.by_uid.remove(&uid);
                }
                Some(_) => self.idle.push_back(uid),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_idle_cells_are_let_go_but_none_in_use() {
        let registry = Registry::default();
        let used = registry.obtain("used");
        drop((registry.obtain("a"), registry.obtain("b"), registry.obtain("c")));
        registry.write().let_go(2);
        let mut left: Vec<_> = registry.read().by_uid.keys().cloned().collect();
        left.sort();
        assert_eq!(left, ["c", "used"]);
        assert!(Arc::ptr_eq(&registry.obtain("used"), &used));
    }
}
