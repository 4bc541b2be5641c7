//! The model checker's runs. `DURABLE_MODEL=full cargo test --release -p durable-tests --test model -- --nocapture`
//! looks further, for some minutes.

use std::{collections::BTreeSet, time::Instant};

use durable_tests::model::{Act, Bounds, Mutation, Rules, graph};
use stateright::{Checker, HasDiscoveries, Model};

const NONE: Bounds = Bounds { writes: 0, syncs: 0, handoffs: 0, stops: 0, crashes: 0, cleanups: 0, doubles: 0 };
/// Small enough for the mutations and for a second opinion.
const SMALL: Bounds = Bounds { writes: 2, syncs: 1, handoffs: 1, crashes: 1, ..NONE };
const CLEANUP: Bounds = Bounds { writes: 1, syncs: 1, crashes: 1, cleanups: 1, ..NONE };

const ONE_POD: &str = "at most one pod serves";
const ANSWERED: &str = "what a living pod answered is kept";

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
    let without_handoff = [
        "a handoff ends well",
        "a granted pod starts from the log",
        "a refused source serves on",
        "a target steps over the insurance",
        "a target passes the server on",
    ];
    holds("cleanup, stop, crash, double", stops, &without_handoff);
    holds("cleanup, two crashes", Bounds { crashes: 2, ..CLEANUP }, &without_handoff);
    holds("cleanup, handoff, crash, double", Bounds { handoffs: 1, doubles: 1, ..CLEANUP }, &[]);
    if is_full() {
        holds("cleanups, handoff, crash, double", Bounds { handoffs: 1, doubles: 1, cleanups: 2, ..CLEANUP }, &[]);
        holds("cleanup, two handoffs", Bounds { handoffs: 2, crashes: 0, ..CLEANUP }, &[]);
    }
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
