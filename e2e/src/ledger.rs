//! The outside ledger: hosts tell it when they begin and end to serve a server, and it says whether two ever did at
//! once. It knows nothing of epochs' rules, records or agents; it is the second opinion.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::interval;

/// A report of a host's whole pod, a thousand servers, is a tenth of this (bytes).
const MAX_REPORT: usize = 2 << 20;
/// Reports kept; far beyond any test, and an end to one that runs wild.
const MAX_REPORTS: usize = 1_000_000;

/// No report of a living host is longer on its way.
const REPORTING: Duration = Duration::from_millis(300);
/// What a host has seen in its last so many nanoseconds before it is killed, nobody may ever hear of.
const UNREPORTED: u64 = 250_000_000;

/// A host began or ended to serve a server. They sort by time, and at one instant the end comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Report {
    /// When, in nanoseconds since 1970 by the host's clock.
    pub at_ns: u64,
    /// Which of the two.
    pub event: Event,
    /// `namespace/name`.
    pub server: String,
    /// The resource's uid: a server created anew is another one.
    pub uid: String,
    /// The term.
    pub epoch: u64,
    /// The host's pod.
    pub pod: String,
}

/// What a host reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It serves no longer.
    End,
    /// It serves from now on.
    Begin,
}

/// Two pods served one server at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// `namespace/name`.
    pub server: String,
    /// Pod and epoch of the term that began first.
    pub first: (String, u64),
    /// Pod and epoch of the one that began before the first had ended.
    pub second: (String, u64),
    /// For how long (nanoseconds), as far as is known.
    pub nanos: u64,
}

/// A ledger that listens.
#[derive(Debug)]
pub struct Ledger {
    address: SocketAddr,
    reports: Reports,
    server: JoinHandle<()>,
}

/// A set: a host that got no answer reports again.
type Reports = Arc<Mutex<BTreeSet<Report>>>;

impl Ledger {
    /// Opens a ledger on an address that pods can reach.
    pub async fn open(address: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await.with_context(|| format!("ledger on {address}"))?;
        let address = listener.local_addr()?;
        let reports = Reports::default();
        let app = Router::new()
            .route("/terms", post(take))
            .layer(DefaultBodyLimit::max(MAX_REPORT))
            .with_state(Arc::clone(&reports));
        let server = tokio::spawn(async move {
            // Ends only when the ledger is dropped.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, reports, server })
    }

    /// Where hosts send their reports: the URL without the path.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many reports have come.
    #[must_use]
    pub fn len(&self) -> usize {
        locked(&self.reports).len()
    }

    /// Whether nobody has reported anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Terms begun at or after this time (nanoseconds since 1970).
    #[must_use]
    pub fn begun_since(&self, at_ns: u64) -> usize {
        locked(&self.reports).iter().filter(|r| r.event == Event::Begin && r.at_ns >= at_ns).count()
    }

    /// Terms begun at or after this time, of the server that has most.
    #[must_use]
    pub fn most_begun_since(&self, at_ns: u64) -> usize {
        let reports = locked(&self.reports);
        let begun = reports.iter().filter(|r| r.event == Event::Begin && r.at_ns >= at_ns);
        let mut terms = BTreeMap::<&String, usize>::new();
        for report in begun {
            *terms.entry(&report.uid).or_default() += 1;
        }
        terms.into_values().max().unwrap_or_default()
    }

    /// Whether this pod serves anything now.
    #[must_use]
    pub fn serves(&self, pod: &str) -> bool {
        let reports = locked(&self.reports);
        terms(&reports).values().flatten().any(|term| term.pod == pod && term.end == u64::MAX)
    }

    /// Terms begun in any pod but this one.
    #[must_use]
    pub fn begins_elsewhere(&self, pod: &str) -> usize {
        locked(&self.reports).iter().filter(|r| r.event == Event::Begin && r.pod != pod).count()
    }

    /// When this pod ended to serve for the last time (nanoseconds since 1970), if it ever did.
    #[must_use]
    pub fn last_end(&self, pod: &str) -> Option<u64> {
        let of_pod = |r: &&Report| r.event == Event::End && r.pod == pod;
        locked(&self.reports).iter().rev().find(of_pod).map(|r| r.at_ns)
    }

    /// Terms that ended at or after this time (nanoseconds since 1970).
    #[must_use]
    pub fn ends_since(&self, at_ns: u64) -> usize {
        locked(&self.reports).iter().filter(|r| r.event == Event::End && r.at_ns >= at_ns).count()
    }

    /// For each server that one of these pods served at this time (nanoseconds since 1970): how long after it the next term
    /// began, anywhere (nanoseconds), if one did.
    #[must_use]
    pub fn recoveries(&self, at_ns: u64, pods: &[String]) -> Vec<Option<u64>> {
        recoveries(&locked(&self.reports), at_ns, pods)
    }

    /// Notes the last ends that killed pods could not report, for whatever is asked later.
    pub fn close(&self, killed: &BTreeMap<String, u64>) {
        let mut reports = locked(&self.reports);
        let ends = last_ends(&reports, killed);
        reports.extend(ends);
    }

    /// All overlaps. A pod that was killed (when, in nanoseconds since 1970, by name) could not report its last ends: its
    /// open terms are taken to have ended shortly before. Reports on their way are given a moment to arrive.
    pub async fn overlaps(&self, killed: &BTreeMap<String, u64>) -> Vec<Overlap> {
        let mut looks = interval(REPORTING);
        let mut before = usize::MAX;
        while self.len() != before {
            before = self.len();
            looks.reset();
            looks.tick().await;
        }
        overlaps(&locked(&self.reports), killed)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(reports): State<Reports>, Json(new): Json<Vec<Report>>) -> StatusCode {
    let mut reports = locked(&reports);
    if reports.len() + new.len() > MAX_REPORTS {
        return StatusCode::INSUFFICIENT_STORAGE;
    }
    reports.extend(new);
    StatusCode::NO_CONTENT
}

fn locked(reports: &Mutex<BTreeSet<Report>>) -> MutexGuard<'_, BTreeSet<Report>> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A span of time in which one pod served one server.
#[derive(Debug, Clone)]
struct Term {
    pod: String,
    epoch: u64,
    begin: u64,
    end: u64,
}

/// Finds the terms of one server that overlap.
#[must_use]
pub fn overlaps(reports: &BTreeSet<Report>, killed: &BTreeMap<String, u64>) -> Vec<Overlap> {
    let mut found = Vec::new();
    let reports = reports.iter().cloned().chain(last_ends(reports, killed)).collect();
    for ((server, _), terms) in terms(&reports) {
        let mut terms = terms.into_iter();
        let Some(mut open) = terms.next() else { continue };
        for term in terms {
            if term.begin < open.end && term.pod != open.pod {
                let nanos = open.end.min(term.end) - term.begin;
                let name = |term: &Term| (term.pod.clone(), term.epoch);
                found.push(Overlap { server: server.clone(), first: name(&open), second: name(&term), nanos });
            }
            if term.end > open.end {
                open = term;
            }
        }
    }
    found
}

/// The ends of the terms that these pods had when they were killed. A host that only slept reports its own too late.
fn last_ends(reports: &BTreeSet<Report>, killed: &BTreeMap<String, u64>) -> Vec<Report> {
    let mut ends = Vec::new();
    for ((server, uid), terms) in terms(reports) {
        for Term { pod, epoch, begin, end } in terms {
            let Some(at) = killed.get(&pod).filter(|at| **at >= begin) else { continue };
            // At one instant an end is of what was before.
            let at_ns = at.saturating_sub(UNREPORTED).max(begin + 1);
            if at_ns < end {
                ends.push(Report { at_ns, event: Event::End, server: server.clone(), uid: uid.clone(), epoch, pod });
            }
        }
    }
    ends
}

fn recoveries(reports: &BTreeSet<Report>, at_ns: u64, pods: &[String]) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    for terms in terms(reports).into_values() {
        let before = terms.iter().rfind(|term| term.begin <= at_ns);
        if before.is_some_and(|term| term.end > at_ns && pods.contains(&term.pod)) {
            let next = terms.iter().map(|term| term.begin).find(|begin| *begin > at_ns);
            found.push(next.map(|begin| begin - at_ns));
        }
    }
    found
}

/// The terms of every server (name and uid), in the order of their beginnings.
fn terms(reports: &BTreeSet<Report>) -> BTreeMap<(String, String), Vec<Term>> {
    let mut servers: BTreeMap<(String, String), Vec<Term>> = BTreeMap::new();
    for report in reports {
        let terms = servers.entry((report.server.clone(), report.uid.clone())).or_default();
        match report.event {
            Event::Begin => {
                let (pod, epoch, begin) = (report.pod.clone(), report.epoch, report.at_ns);
                terms.push(Term { pod, epoch, begin, end: u64::MAX });
            }
            Event::End => {
                let own = |t: &&mut Term| t.pod == report.pod && t.epoch == report.epoch && t.end > report.at_ns;
                if let Some(term) = terms.iter_mut().rev().find(own) {
                    term.end = report.at_ns;
                }
            }
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps(reports: &[Report], killed: &BTreeMap<String, u64>) -> Vec<Overlap> {
        super::overlaps(&reports.iter().cloned().collect(), killed)
    }

    fn report(pod: &str, epoch: u64, event: Event, at_ns: u64) -> Report {
        Report { server: "ns/a".into(), uid: "u".into(), epoch, pod: pod.into(), event, at_ns }
    }

    use Event::{Begin, End};

    #[test]
    fn a_handoff_does_not_overlap() {
        let reports = [report("b", 2, Begin, 11), report("a", 1, End, 10), report("a", 1, Begin, 1)];
        assert!(overlaps(&reports, &BTreeMap::new()).is_empty());
        let at_once = [report("a", 1, Begin, 1), report("b", 2, Begin, 10), report("a", 1, End, 10)];
        assert!(overlaps(&at_once, &BTreeMap::new()).is_empty());
    }

    #[test]
    fn two_at_once_are_found_with_how_long() {
        let reports = [report("a", 1, Begin, 1), report("b", 2, Begin, 8), report("a", 1, End, 10)];
        let found = overlaps(&reports, &BTreeMap::new());
        let expected = Overlap { server: "ns/a".into(), first: ("a".into(), 1), second: ("b".into(), 2), nanos: 2 };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_term_inside_a_longer_one_does_not_hide_it() {
        let reports =
            [report("a", 1, Begin, 1), report("b", 2, Begin, 3), report("b", 2, End, 4), report("c", 3, Begin, 5)];
        assert_eq!(overlaps(&reports, &BTreeMap::new()).len(), 2);
    }

    #[test]
    fn a_killed_pod_serves_until_shortly_before_it_was_killed() {
        let reports = [report("a", 1, Begin, 1), report("b", 3, Begin, 20)];
        assert_eq!(overlaps(&reports, &BTreeMap::new()).len(), 1);
        assert!(overlaps(&reports, &BTreeMap::from([("a".into(), UNREPORTED + 15)])).is_empty());
        assert_eq!(overlaps(&reports, &BTreeMap::from([("a".into(), UNREPORTED + 25)])).len(), 1);
    }

    #[test]
    fn a_pod_that_is_killed_twice_has_two_last_ends() {
        let mut reports: BTreeSet<Report> = [report("a", 1, Begin, 1), report("b", 3, Begin, UNREPORTED)].into();
        let ends = last_ends(&reports, &BTreeMap::from([("a".into(), UNREPORTED + 9)]));
        assert_eq!(ends, [report("a", 1, End, 9)]);
        reports.extend(ends);
        reports.extend([report("b", 3, End, UNREPORTED + 1), report("a", 5, Begin, UNREPORTED + 20)]);
        let again = BTreeMap::from([("a".into(), UNREPORTED * 3)]);
        assert!(super::overlaps(&reports, &again).is_empty());
    }

    #[test]
    fn a_host_that_slept_served_nothing_until_it_said_so() {
        let mut reports: BTreeSet<Report> =
            [report("a", 1, Begin, 1), report("b", 3, Begin, UNREPORTED), report("a", 1, End, UNREPORTED * 2)].into();
        let slept = BTreeMap::from([("a".into(), UNREPORTED + 9)]);
        assert!(super::overlaps(&reports, &slept).is_empty());
        let ends = last_ends(&reports, &slept);
        reports.extend(ends);
        assert!(super::overlaps(&reports, &BTreeMap::new()).is_empty(), "nor for what is asked later");
    }

    #[test]
    fn what_a_pod_begins_after_its_containers_were_killed_counts_again() {
        let reports = [report("a", 1, Begin, 1), report("a", 1, Begin, 30), report("b", 2, Begin, 40)];
        assert_eq!(overlaps(&reports, &BTreeMap::from([("a".into(), 15)])).len(), 1);
    }

    #[test]
    fn a_thawed_server_serves_two_terms_of_one_epoch() {
        let reports =
            [report("a", 1, Begin, 1), report("a", 1, End, 5), report("a", 1, Begin, 6), report("a", 1, End, 9)];
        assert!(overlaps(&[&reports[..], &[report("b", 2, Begin, 10)]].concat(), &BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_recovery_is_the_time_until_the_next_term() {
        let other = |report: Report| Report { server: "ns/b".into(), ..report };
        let reports = [
            report("a", 1, Begin, 1),
            report("b", 3, Begin, 30),
            other(report("a", 1, Begin, 2)),
            other(report("a", 1, End, 9)),
        ];
        let reports = reports.into_iter().collect();
        assert_eq!(recoveries(&reports, 10, &["a".into()]), [Some(20)], "the other had ended before");
        assert_eq!(recoveries(&reports, 5, &["a".into()]), [Some(25), None]);
        assert_eq!(recoveries(&reports, 10, &["b".into()]), []);
    }

    #[test]
    fn a_server_created_anew_is_another() {
        let anew = Report { uid: "v".into(), ..report("b", 1, Begin, 5) };
        assert!(overlaps(&[report("a", 1, Begin, 1), anew], &BTreeMap::new()).is_empty());
    }

    #[tokio::test]
    async fn hosts_report_over_http() {
        let ledger = Ledger::open([127, 0, 0, 1].into()).await.unwrap();
        let body = r#"[{"server":"ns/a","uid":"u","epoch":1,"pod":"a","event":"begin","at_ns":5}]"#;
        let request = http::Request::post("/terms")
            .header("Host", "ledger")
            .header("Content-Type", "application/json")
            .body(body.into())
            .unwrap();
        let answer = crate::http::Pool::new(ledger.address).send(request).await.unwrap();
        assert_eq!(answer.status(), 204);
        assert!(ledger.serves("a") && !ledger.serves("b"));
        assert_eq!((ledger.begun_since(5), ledger.most_begun_since(5), ledger.most_begun_since(6)), (1, 1, 0));
        assert!(ledger.overlaps(&BTreeMap::new()).await.is_empty());
    }
}
