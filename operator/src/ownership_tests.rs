use std::collections::HashMap;

use super::*;

const LIVE: PodView = PodView { exists: true, session: true, over: false, silent: None };
const AWAY: PodView = PodView { session: false, ..LIVE };
const SILENT: PodView = PodView { silent: Some(LAST), ..AWAY };
const TERMINATED: PodView = PodView { over: true, ..AWAY };
const GONE_OVER: PodView = PodView { exists: false, ..TERMINATED };
const GONE: PodView = PodView { exists: false, ..AWAY };
const GONE_SILENT: PodView = PodView { silent: Some(LAST), ..GONE };
const LAST: Heartbeat = Heartbeat { generation: handoff::Generation(7), counter: 12 };

fn pod(name: &str) -> PodUid {
    PodUid(name.into())
}

fn at(ms: u64) -> Instant {
    Instant(Duration::from_millis(ms))
}

fn owned(standing: Standing) -> Ownership {
    Ownership { epoch: Epoch(3), owner: Some(pod("a")), standing, ..Ownership::default() }
}

fn granted(over: bool) -> Ownership {
    Ownership { grant: Some(Grant { to: pod("b"), over }), ..owned(Standing::Over) }
}

fn next(ownership: &Ownership, now: u64, pods: &[(&str, PodView)]) -> Next {
    let pods: HashMap<PodUid, PodView> = pods.iter().map(|(name, view)| (pod(name), *view)).collect();
    ownership.next(at(now), |uid| pods.get(uid).copied().unwrap_or_default())
}

fn any(grantee: Option<&str>) -> Next {
    Next::Assign(To::Any, Some(over(grantee)))
}

fn over(grantee: Option<&str>) -> Supersedes {
    Supersedes { epoch: Epoch(3), owner: pod("a").into(), grantee: grantee.map(|to| pod(to).into()) }
}

fn only(name: &str) -> Next {
    Next::Assign(To::Only(pod(name)), Some(over(None)))
}

fn silent(name: &str) -> Over {
    Over { pod: pod(name), silent: Some(LAST) }
}

/// Claimed from a silent owner, or over a silent grantee.
fn from_silent(owner: Over, grantee: Option<Over>) -> Next {
    Next::Assign(To::Any, Some(Supersedes { epoch: Epoch(3), owner, grantee }))
}

fn trouble() -> Trouble {
    Trouble { reason: Reason::StoreUnavailable, message: String::new(), fatal: false }
}

fn refused(epoch: u64, owner: &str, grantee: Option<&str>) -> Failure {
    Failure::Refused { epoch: Epoch(epoch), owner: pod(owner), grantee: grantee.map(pod) }
}

fn sent_to(mut ownership: Ownership, name: &str) -> Ownership {
    ownership.assigned(Outstanding { id: 7, to: pod(name), since: at(0) });
    ownership
}

#[test]
fn what_is_assigned_and_what_waits() {
    let nothing_named = Next::Assign(To::Any, None);
    let unheard = || owned(Standing::Unheard);
    let cases = [
        ("never owned", Ownership::default(), vec![], nothing_named.clone()),
        ("held", owned(Standing::Held), vec![("a", LIVE)], Next::Nothing),
        ("released", owned(Standing::Released), vec![("a", LIVE)], any(None)),
        ("disclaimed", owned(Standing::Over), vec![("a", LIVE)], any(None)),
        ("an owner without a session", unheard(), vec![("a", AWAY)], Next::Wait),
        ("a silent owner", unheard(), vec![("a", SILENT)], from_silent(silent("a"), None)),
        ("a silent owner whose object is gone", unheard(), vec![("a", GONE_SILENT)], from_silent(silent("a"), None)),
        (
            "a terminated owner need not be looked up",
            unheard(),
            vec![("a", PodView { over: true, ..SILENT })],
            any(None),
        ),
        ("terminated owner", unheard(), vec![("a", TERMINATED)], any(None)),
        ("terminated and deleted owner", unheard(), vec![("a", GONE_OVER)], any(None)),
        ("an object that is merely gone proves nothing", unheard(), vec![("a", GONE)], nothing_named.clone()),
        ("an owner with a session is asked", unheard(), vec![("a", LIVE)], only("a")),
        ("a live grantee is asked", granted(false), vec![("b", LIVE)], only("b")),
        ("a grantee without a session is waited for", granted(false), vec![("b", AWAY)], Next::Wait),
        (
            "a silent grantee is named as such",
            granted(false),
            vec![("b", SILENT)],
            from_silent(pod("a").into(), Some(silent("b"))),
        ),
        (
            "a grantee that lives is asked though the owner is silent",
            Ownership { standing: Standing::Unheard, ..granted(false) },
            vec![("a", SILENT), ("b", LIVE)],
            Next::Assign(To::Only(pod("b")), Some(Supersedes { epoch: Epoch(3), owner: silent("a"), grantee: None })),
        ),
        (
            "both silent",
            Ownership { standing: Standing::Unheard, ..granted(false) },
            vec![("a", SILENT), ("b", SILENT)],
            from_silent(silent("a"), Some(silent("b"))),
        ),
        ("a gone grantee is waited for", granted(false), vec![("b", GONE)], Next::Wait),
        ("a terminated grantee is named", granted(false), vec![("b", GONE_OVER)], any(Some("b"))),
        ("a disclaiming grantee is named", granted(true), vec![("b", LIVE)], any(Some("b"))),
        (
            "with the owner unheard, a grantee is not asked",
            Ownership { standing: Standing::Unheard, ..granted(false) },
            vec![("a", AWAY), ("b", LIVE)],
            Next::Wait,
        ),
        ("unknown owner", Ownership::recorded(Epoch(3), None), vec![], nothing_named.clone()),
        (
            "no second pod while the first may start it",
            sent_to(owned(Standing::Over), "c"),
            vec![("c", LIVE)],
            Next::Wait,
        ),
        ("nor while it is away", sent_to(owned(Standing::Over), "c"), vec![("c", AWAY)], Next::Wait),
        ("until it is silent", sent_to(owned(Standing::Over), "c"), vec![("c", SILENT)], any(None)),
        (
            "a second pod once the first is terminated",
            sent_to(owned(Standing::Over), "c"),
            vec![("c", TERMINATED)],
            any(None),
        ),
        (
            "a second pod once the first is gone: the log decides",
            sent_to(owned(Standing::Over), "c"),
            vec![("c", GONE)],
            any(None),
        ),
    ];
    for (name, ownership, pods, expected) in cases {
        assert_eq!(next(&ownership, 0, &pods), expected, "{name}");
    }
}

#[test]
fn the_higher_epoch_is_right() {
    for (epoch, claimed, owner) in
        [(1, Claimed::Stale, "a"), (2, Claimed::Passing, "a"), (3, Claimed::Owner, "b"), (4, Claimed::Owner, "b")]
    {
        let mut ownership = owned(Standing::Held);
        assert_eq!(ownership.held(&pod("b"), Epoch(epoch)), claimed, "{epoch}");
        assert_eq!(ownership.owner, Some(pod(owner)), "{epoch}");
    }
}

#[test]
fn messages_of_a_handoff_may_cross() {
    // The source's word comes first: its target is the owner, and is not bothered at once.
    let mut ownership = owned(Standing::Held);
    assert!(ownership.gone(&pod("a"), Epoch(3), How::HandedOff, Some(pod("b")), at(0)));
    assert_eq!((ownership.epoch, ownership.owner.clone()), (Epoch(4), Some(pod("b"))));
    assert_eq!(next(&ownership, 999, &[("b", LIVE)]), Next::Wait);
    assert!(matches!(next(&ownership, 1_000, &[("b", LIVE)]), Next::Assign(To::Only(_), _)));
    assert_eq!(ownership.held(&pod("b"), Epoch(4)), Claimed::Owner);
    // The target's word comes first, and it has even released since.
    let mut ownership = owned(Standing::Held);
    ownership.held(&pod("b"), Epoch(4));
    assert!(ownership.gone(&pod("b"), Epoch(4), How::Released, None, at(0)));
    assert!(!ownership.gone(&pod("a"), Epoch(3), How::HandedOff, Some(pod("b")), at(0)));
    assert_eq!((ownership.epoch, ownership.standing), (Epoch(4), Standing::Released));
}

#[test]
fn a_disclaimer_with_a_grant_asks_the_grantee_and_its_disclaimer_frees() {
    let mut ownership = owned(Standing::Held);
    assert!(ownership.gone(&pod("a"), Epoch(3), How::Disclaimed, Some(pod("b")), at(0)));
    assert_eq!(next(&ownership, 0, &[("b", LIVE)]), only("b"));
    assert!(ownership.gone(&pod("b"), Epoch(4), How::Disclaimed, None, at(0)));
    assert_eq!(next(&ownership, 0, &[("b", LIVE)]), any(Some("b")));
}

#[test]
fn a_strangers_disclaimer_takes_nothing_from_the_owner() {
    let mut ownership = owned(Standing::Held);
    assert!(!ownership.gone(&pod("b"), Epoch(4), How::Disclaimed, None, at(0)));
    assert!(!ownership.gone(&pod("b"), Epoch(3), How::Fenced, None, at(0)));
    assert_eq!(ownership.standing, Standing::Held);
}

#[test]
fn an_inventory_without_it_is_a_disclaimer() {
    let mut ownership = owned(Standing::Unheard);
    assert!(!ownership.absent(&pod("b")));
    assert!(ownership.absent(&pod("a")));
    assert_eq!(next(&ownership, 0, &[("a", LIVE)]), any(None));
    let mut ownership = sent_to(Ownership::default(), "c");
    assert!(ownership.absent(&pod("c")), "the assignment was lost with the session");
    assert_eq!(ownership.outstanding, None);
}

#[test]
fn a_refusal_corrects_the_index() {
    let mut ownership = sent_to(owned(Standing::Over), "c");
    assert!(ownership.failed(&pod("c"), 7, refused(6, "d", None), at(0), 0.0));
    assert_eq!((ownership.epoch, ownership.standing), (Epoch(6), Standing::Unheard));
    let over = Some(Supersedes { epoch: Epoch(6), owner: pod("d").into(), grantee: None });
    assert_eq!(next(&ownership, 0, &[("d", GONE_OVER)]), Next::Assign(To::Any, over.clone()), "at once");
    assert_eq!(next(&ownership, 0, &[("d", LIVE)]), Next::Assign(To::Only(pod("d")), over), "it is asked first");

    let mut ownership = sent_to(owned(Standing::Over), "c");
    assert!(ownership.failed(&pod("c"), 7, refused(3, "a", Some("b")), at(0), 0.0));
    assert_eq!(next(&ownership, 0, &[("b", LIVE)]), only("b"), "a grant that was not known");
}

#[test]
fn a_refusal_that_says_nothing_new_waits() {
    let mut ownership = sent_to(owned(Standing::Unheard), "c");
    assert!(ownership.failed(&pod("c"), 7, refused(3, "a", None), at(0), 0.0));
    assert_eq!(next(&ownership, 499, &[("a", GONE)]), Next::Wait);
    assert_eq!(next(&ownership, 500, &[("a", GONE)]), Next::Assign(To::Any, None));
    assert!(ownership.trouble.is_some());
}

#[test]
fn an_owner_that_will_not_have_it_back_does_not_hold_it() {
    let mut ownership = sent_to(owned(Standing::Unheard), "a");
    assert!(ownership.failed(&pod("a"), 7, Failure::Pod(trouble(), None), at(0), 0.0));
    assert_eq!(next(&ownership, 500, &[("a", LIVE)]), any(None));
    assert!(ownership.avoid.contains(&pod("a")));

    let mut ownership = sent_to(Ownership::default(), "c");
    assert!(ownership.failed(&pod("c"), 7, Failure::Pod(trouble(), Some(Epoch(1))), at(0), 0.0));
    assert_eq!(
        (ownership.epoch, ownership.standing),
        (Epoch(1), Standing::Over),
        "it claimed, and then could not start it"
    );
}

#[test]
fn failures_back_off_with_jitter_to_ten_seconds() {
    let mut ownership = owned(Standing::Released);
    for (failure, wait) in [(0, 500), (1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 10_000), (6, 10_000)] {
        ownership = sent_to(ownership, "c");
        assert!(ownership.failed(&pod("c"), 7, Failure::Everywhere(trouble()), at(0), 0.0));
        assert_eq!(ownership.not_before, at(wait), "{failure}");
    }
    ownership = sent_to(ownership, "c");
    ownership.failed(&pod("c"), 7, Failure::Everywhere(trouble()), at(0), 1.0);
    assert_eq!(ownership.not_before, at(7500));
    ownership = sent_to(ownership, "c");
    ownership.failed(&pod("c"), 7, Failure::Everywhere(Trouble { fatal: true, ..trouble() }), at(0), 0.0);
    assert_eq!(ownership.not_before, at(60_000));
    ownership.held(&pod("c"), Epoch(5));
    assert_eq!((ownership.failures, ownership.trouble), (0, None));
}

#[test]
fn answers_to_nobodys_question_change_nothing() {
    let mut ownership = sent_to(owned(Standing::Over), "c");
    assert!(!ownership.failed(&pod("c"), 6, Failure::Everywhere(trouble()), at(0), 0.0));
    assert!(!ownership.failed(&pod("d"), 7, Failure::Everywhere(trouble()), at(0), 0.0));
    assert!(ownership.outstanding.is_some());
}

#[test]
fn an_unanswered_assignment_is_sent_again_to_the_same_pod_only() {
    let ownership = sent_to(owned(Standing::Released), "c");
    assert_eq!(next(&ownership, 9_999, &[("c", LIVE)]), Next::Wait);
    assert_eq!(next(&ownership, 10_000, &[("c", LIVE)]), only("c"));
    assert_eq!(next(&ownership, 10_000, &[("c", AWAY)]), Next::Wait);
}

#[test]
fn a_claim_that_was_given_up_before_it_was_told_is_over() {
    for (how, standing) in [(How::Released, Standing::Released), (How::Disclaimed, Standing::Over)] {
        let mut ownership = sent_to(owned(Standing::Over), "c");
        assert!(ownership.gone(&pod("c"), Epoch(5), how, None, at(0)));
        assert_eq!((ownership.epoch, ownership.standing), (Epoch(5), standing));
        assert_eq!(next(&ownership, 0, &[("c", LIVE)]), Next::Wait, "its failure comes yet");
    }
}
