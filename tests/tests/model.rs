//! The model checker's runs. `DURABLE_MODEL=full cargo test --release -p durable-tests --test model -- --nocapture`
//! looks further, for some minutes.

use std::{collections::BTreeSet, time::Instant};

use durable_tests::model::{Act, Bounds, Mutation, Rules, graph};
use stateright::{Checker, HasDiscoveries, Model};

const NONE: Bounds = Bounds {
    writes: 0,
    syncs: 0,
    handoffs: 0,
    stops: 0,
    crashes: 0,
    cleanups: 0,
    doubles: 0,
    beats: 0,
    expiries: 0,
    leaders: 0,
    restarts: 0,
    losses: 0,
};
/// Small enough for the mutations and for a second opinion.
const SMALL: Bounds = Bounds { writes: 2, syncs: 1, handoffs: 1, crashes: 1, ..NONE };
const CLEANUP: Bounds = Bounds { writes: 1, syncs: 1, crashes: 1, cleanups: 1, ..NONE };

/// The lease of one agent ends, or those of two heartbeats.
const LEASE: Bounds = Bounds { expiries: 1, ..NONE };
const LEASES: Bounds = Bounds { beats: 1, expiries: 2, ..NONE };

const ONE_POD: &str = "at most one pod serves";
const ANSWERED: &str = "what a living pod answered is kept";

/// What needs a handoff, and is never reached without one.
const OF_HANDOFFS: [&str; 5] = [
    "a handoff ends well",
    "a granted pod starts from the log",
    "a refused source serves on",
    "a target steps over the insurance",
    "a target passes the server on",
];

/// Every state within the bounds keeps every property, and leads back to a served server without any further fault,
/// message or request.
fn holds(name: &str, bounds: Bounds, never: &[&str]) {
    let begun = Instant::now();
    let report = graph::explore(Rules { bounds, mutation: None });
    let (states, steps) = (report.states, report.steps);
    println!("{name}: {states} states, {steps} steps, {:.1} s, {bounds:?}", begun.elapsed().as_secs_f32());
    assert_eq!(report.violated, None, "{name}");
    assert_eq!(report.stuck_after, None, "{name}: {} states are stuck, the first one after this", report.stuck);
    assert_eq!(report.never, never, "{name}: never reached");
}

fn is_full() -> bool {
    std::env::var("DURABLE_MODEL").is_ok_and(|size| size == "full")
}

#[test]
fn one_handoff() {
    holds("handoff, sync, crash, stop", Bounds { stops: 1, writes: 1, ..SMALL }, &[]);
    holds("handoff, two crashes", Bounds { crashes: 2, ..SMALL }, &[]);
    if is_full() {
        holds("handoff, two syncs, stop, crash", Bounds { writes: 2, syncs: 2, stops: 1, ..SMALL }, &[]);
        holds("handoff, two crashes, two stops", Bounds { writes: 1, crashes: 2, stops: 2, ..SMALL }, &[]);
    }
}

#[test]
fn two_handoffs() {
    holds("two handoffs, write", Bounds { writes: 1, syncs: 0, handoffs: 2, crashes: 0, ..SMALL }, &[]);
    holds("two handoffs, crash", Bounds { writes: 0, syncs: 0, handoffs: 2, ..SMALL }, &[]);
    if is_full() {
        holds("two handoffs, write, crash", Bounds { writes: 1, syncs: 0, handoffs: 2, ..SMALL }, &[]);
        holds("two handoffs, sync, crash", Bounds { writes: 1, handoffs: 2, ..SMALL }, &[]);
        holds("two handoffs, two writes, crash", Bounds { syncs: 0, handoffs: 2, ..SMALL }, &[]);
        holds("two handoffs, two crashes", Bounds { writes: 1, syncs: 0, handoffs: 2, crashes: 2, ..SMALL }, &[]);
    }
}

#[test]
fn cleanup() {
    let stops = Bounds { stops: 1, cleanups: 2, doubles: 1, ..CLEANUP };
    holds("cleanup, stop, crash, double", stops, &OF_HANDOFFS);
    holds("cleanup, two crashes", Bounds { crashes: 2, ..CLEANUP }, &OF_HANDOFFS);
    holds("cleanup, handoff, crash, double", Bounds { handoffs: 1, doubles: 1, ..CLEANUP }, &[]);
    if is_full() {
        holds("cleanups, handoff, crash, double", Bounds { handoffs: 1, doubles: 1, cleanups: 2, ..CLEANUP }, &[]);
        holds("cleanup, two handoffs", Bounds { handoffs: 2, crashes: 0, ..CLEANUP }, &[]);
    }
}

#[test]
fn leases() {
    holds("leases, leader change", Bounds { leaders: 1, ..LEASES }, &OF_HANDOFFS);
    holds("lease, loss, restart", Bounds { losses: 1, restarts: 1, ..LEASE }, &OF_HANDOFFS);
    holds("handoff, write, lease", Bounds { writes: 1, handoffs: 1, ..LEASE }, &[]);
    holds("handoff, heartbeat, lease, leader change", Bounds { handoffs: 1, beats: 1, leaders: 1, ..LEASE }, &[]);
    holds("handoff, lease, loss", Bounds { handoffs: 1, losses: 1, ..LEASE }, &[]);
    holds("handoff, lease, crash", Bounds { handoffs: 1, crashes: 1, ..LEASE }, &[]);
    if is_full() {
        let owner = Bounds { writes: 1, syncs: 1, ..LEASES };
        holds("leases, sync, leader change", Bounds { leaders: 1, ..owner }, &OF_HANDOFFS);
    }
}

#[test]
fn restarts() {
    holds("handoff, write, restart", Bounds { writes: 1, handoffs: 1, restarts: 1, ..NONE }, &[]);
    holds("handoff, lease, restart", Bounds { handoffs: 1, restarts: 1, ..LEASE }, &[]);
    if is_full() {
        let synced = Bounds { writes: 1, syncs: 1, restarts: 1, ..LEASE };
        holds("handoff, sync, lease, restart", Bounds { handoffs: 1, ..synced }, &[]);
    }
}

#[test]
fn mistakes_about_leases_are_found() {
    is_found(Mutation::NoHeartbeatRead, LEASES, ONE_POD);
    is_found(Mutation::LateSuccess, LEASES, ONE_POD);
    is_found(Mutation::OldLeaderAnswers, Bounds { leaders: 1, ..LEASES }, ONE_POD);
    is_found(Mutation::AdoptFrozen, Bounds { handoffs: 1, restarts: 1, ..NONE }, ONE_POD);
    is_found(Mutation::AdoptAnew, Bounds { restarts: 1, ..LEASES }, ONE_POD);
    is_found(Mutation::AdoptWithoutGrants, Bounds { writes: 1, handoffs: 1, restarts: 1, ..NONE }, ANSWERED);
    is_found(Mutation::OldSilence, Bounds { handoffs: 1, ..LEASE }, ONE_POD);
}

/// Stateright's own search sees the same states and comes to the same verdict.
#[test]
fn second_opinion() {
    let rules = Rules { bounds: SMALL, mutation: None };
    let checker = rules.checker().spawn_bfs().join();
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), graph::explore(rules).states);
}

/// The mistake breaks this property within bounds in which, by the tests above, nothing else does.
fn is_found(mutation: Mutation, bounds: Bounds, property: &'static str) {
    let only = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = Rules { bounds, mutation: Some(mutation) }.checker().finish_when(only).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let way: Vec<Act> = discoveries.get(property).map(|path| path.clone().into_actions()).unwrap_or_default();
    println!("{mutation:?} breaks \"{property}\" in {} steps: {way:?}", way.len());
    assert!(!way.is_empty(), "{mutation:?} was not found: the checker cannot see this mistake");
}

#[test]
fn final_before_the_grant_is_durable_is_found() {
    is_found(Mutation::FinalBeforeGrant, SMALL, ONE_POD);
}

#[test]
fn thaw_after_final_is_found() {
    is_found(Mutation::ThawAfterFinal, SMALL, ONE_POD);
}

#[test]
fn overwriting_is_found() {
    is_found(Mutation::Overwrite, SMALL, ONE_POD);
}

#[test]
fn unsafe_cleanup_is_found() {
    is_found(Mutation::CleanupTooSoon, CLEANUP, ONE_POD);
    is_found(Mutation::CleanupOfClaims, CLEANUP, ONE_POD);
    is_found(Mutation::CleanupPointedAt, CLEANUP, "the state is there");
    is_found(Mutation::CleanupPointedAt, Bounds { crashes: 2, ..CLEANUP }, "what was acknowledged is kept");
}

/// No safety property breaks; the server just never comes back.
#[test]
fn a_silent_source_leaves_the_server_stuck() {
    let report = graph::explore(Rules { bounds: SMALL, mutation: Some(Mutation::NoDisclaim) });
    assert_eq!(report.violated, None);
    println!("NoDisclaim: {} of {} states are stuck, as after {:?}", report.stuck, report.states, report.stuck_after);
    assert!(report.stuck > 0, "the checker cannot see that nobody serves");
}

#[test]
fn what_the_agent_must_not_do_is_found() {
    is_found(Mutation::SyncWhileGranting, SMALL, ONE_POD);
    is_found(Mutation::NoWithdraw, SMALL, ANSWERED);
    is_found(Mutation::InsureWithoutState, SMALL, ANSWERED);
    is_found(Mutation::ClaimNextEpoch, SMALL, "an epoch is one pod's");
    is_found(Mutation::AnyEpoch, SMALL, ONE_POD);
    is_found(Mutation::AnyGrantee, SMALL, ONE_POD);
}
