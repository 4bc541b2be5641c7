//! The real machines, the operator's real world and the real log of the store, as one simulated cluster per seed: virtual
//! time, a network and a store that lose and delay, pods and operators that die. `DURABLE_SEEDS` says how many seeds;
//! `DURABLE_SEED=n` runs one, and prints what happened in it.

mod agent;
mod chance;
mod check;
mod faults;
mod host;
mod kube;
mod net;
mod operator;
mod pods;
mod process;
mod run;
mod sim;
mod steps;
mod store;
mod watch;

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use self::{
    faults::{Fault, Mutation},
    run::{Outcome, run},
    steps::{Step, Table},
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SEEDS: u64 = 10_000;
/// Of a seed that breaks something, what happened last.
const LAST: usize = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs seeds on all cores until one breaks something; the lowest that did, of those that were run.
fn run_all(seeds: std::ops::Range<u64>, mutation: Option<Mutation>, note: &(dyn Fn(&Outcome) + Sync)) -> Option<u64> {
    let (next, broken) = (AtomicU64::new(seeds.start), Mutex::new(None));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || lock(&broken).is_some_and(|found| found < seed) {
                        return;
                    }
                    let outcome = run(seed, mutation, false);
                    note(&outcome);
                    if let Some(what) = outcome.broken {
                        println!("seed {seed}: {what}");
                        let mut broken = lock(&broken);
                        *broken = Some(broken.map_or(seed, |found: u64| found.min(seed)));
                    }
                }
            });
        }
    });
    *lock(&broken)
}

/// Runs a seed again, and prints what happened in it last.
fn replay(seed: u64, mutation: Option<Mutation>, last: usize) -> Outcome {
    let outcome = run(seed, mutation, true);
    let from = outcome.trace.len().saturating_sub(last);
    for line in &outcome.trace[from..] {
        println!("{line}");
    }
    println!("seed {seed}: {:?} after {:.1} s; {:?}", outcome.broken, outcome.took.as_secs_f32(), outcome.counts);
    outcome
}

fn print(table: &Table) {
    print!("{:>17}", "");
    for step in Step::ALL {
        print!("{:>10}", format!("{step:?}"));
    }
    println!();
    for fault in Fault::ALL {
        print!("{:>17}", format!("{fault:?}"));
        for step in Step::ALL {
            print!("{:>10}", table.get(&(fault, step)).copied().unwrap_or(0));
        }
        println!();
    }
}

#[test]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = number("DURABLE_SEED") {
        let outcome = replay(seed, None, usize::MAX);
        assert_eq!(outcome.broken, None, "seed {seed}");
        return;
    }
    let seeds = number("DURABLE_SEEDS").unwrap_or(SEEDS);
    let (begun, table, sums) = (Instant::now(), Mutex::new(Table::new()), Mutex::new([0; 5]));
    let broken = run_all(0..seeds, None, &|outcome| {
        for (cell, n) in &outcome.table {
            *lock(&table).entry(*cell).or_default() += n;
        }
        let mut sums = lock(&sums);
        for (sum, n) in sums.iter_mut().zip(outcome.counts.into_iter().chain([outcome.took.as_secs()])) {
            *sum += n;
        }
    });
    let ([moved, started, answered, durable, virtual_s], took) = (*lock(&sums), begun.elapsed().as_secs_f32());
    println!(
        "{seeds} seeds in {took:.1} s, {virtual_s} s of virtual time: {moved} servers handed over, {started} started, \
         {answered} writes answered, {durable} of them durable"
    );
    print(&lock(&table));
    if let Some(seed) = broken {
        let outcome = replay(seed, None, LAST);
        panic!("seed {seed}: {}; run it again with DURABLE_SEED={seed}", outcome.broken.unwrap_or_default());
    }
    if seeds >= SEEDS {
        let cells = Fault::ALL.into_iter().flat_map(|fault| Step::ALL.map(|step| (fault, step)));
        let table = lock(&table);
        let never: Vec<_> = cells.filter(|cell| !table.contains_key(cell)).collect();
        assert_eq!(never, [], "these faults never struck at these steps");
    }
}

#[test]
fn a_seed_tells_all() {
    for seed in 0..20 {
        let [first, second] = [run(seed, None, true), run(seed, None, true)].map(|outcome| outcome.trace);
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Whether some seed finds the mistake.
fn is_found(mutation: Mutation, seeds: u64) -> bool {
    let begun = Instant::now();
    let found = run_all(0..seeds, Some(mutation), &|_| {});
    let took = begun.elapsed().as_secs_f32();
    match found {
        Some(seed) => println!("{mutation:?} is found by seed {seed} after {took:.1} s"),
        None => println!("{mutation:?} is not found by {seeds} seeds in {took:.1} s"),
    }
    found.is_some()
}

/// So many seeds do not meet what these do wrong. The model checker has the second and the third one among its own mistakes.
const RARE: [Mutation; 3] = [Mutation::SyncWhileGranting, Mutation::LateAnswerRevives, Mutation::FinalBeforeGrant];

#[test]
fn mistakes_are_found() {
    let common = Mutation::ALL.into_iter().filter(|mutation| !RARE.contains(mutation));
    let missed: Vec<_> = common.filter(|mutation| !is_found(*mutation, 2_000)).collect();
    assert_eq!(missed, []);
}
