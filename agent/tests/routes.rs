//! Which of the facts about a server decides where its requests go.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{net::SocketAddr, time::Duration};

use agent::routes::{DirectoryEntry, DirectoryUpdate, Found, Routes, Way};
use handoff::{Epoch, PodUid, ServerId, ServerUid};
use tokio::time::timeout;

fn room() -> ServerId {
    ServerId { namespace: "ns".into(), name: "lobby".into(), uid: ServerUid("u1".into()) }
}

/// What is done to the routes of pod `me`, in order.
enum Step {
    Here(&'static str, u64),
    Hold(&'static str),
    There(&'static str, u64, &'static str),
    Release(&'static str),
    Directory(&'static str, u64, &'static str),
    Complete,
    Removed,
}
use Step::{Complete, Directory, Here, Hold, Release, Removed, There};

fn gateway() -> SocketAddr {
    "10.0.0.1:7070".parse().unwrap()
}

fn take(routes: &Routes, step: &Step) {
    let id = |uid: &str| ServerId { uid: ServerUid(uid.into()), ..room() };
    match step {
        Here(uid, epoch) => routes.set_here(&id(uid), Epoch(*epoch)),
        Hold(uid) => routes.hold(&id(uid)),
        There(uid, epoch, pod) => {
            routes.set_there("lobby", &ServerUid((*uid).into()), Epoch(*epoch), PodUid((*pod).into()), gateway());
        }
        Release(uid) => routes.release_local(&id(uid)),
        Directory(uid, epoch, pod) => routes.apply(DirectoryUpdate {
            entries: vec![DirectoryEntry {
                name: "lobby".into(),
                uid: ServerUid((*uid).into()),
                epoch: Epoch(*epoch),
                pod_uid: PodUid((*pod).into()),
                gateway: (!pod.is_empty()).then(gateway),
            }],
            ..DirectoryUpdate::default()
        }),
        Complete => routes.apply(DirectoryUpdate { version: 1, complete: true, ..DirectoryUpdate::default() }),
        Removed => {
            routes.apply(DirectoryUpdate { removed: vec!["lobby".into()], ..DirectoryUpdate::default() });
        }
    }
}

fn shown(routes: &Routes) -> String {
    match routes.find("lobby") {
        Found::NotYet => "not yet".into(),
        Found::Unknown => "unknown".into(),
        Found::Known(route) => {
            let way = match &route.way {
                Way::Here(_) => "here".to_owned(),
                Way::Held => "held".to_owned(),
                Way::There { pod, .. } => pod.0.clone(),
                Way::Nowhere => "nowhere".to_owned(),
            };
            format!("{way} {}/{}", route.uid, route.epoch)
        }
    }
}

#[test]
fn what_counts_of_what_is_known() {
    let table: &[(&[Step], &str)] = &[
        (&[], "not yet"),
        (&[Complete], "unknown"),
        (&[Directory("u", 3, "a")], "a u/3"),
        (&[Directory("u", 0, "")], "nowhere u/0"),
        (&[Directory("u", 3, "me")], "nowhere u/3"),
        (&[Directory("u", 3, "a"), Directory("u", 0, "")], "nowhere u/0"),
        // What this pod holds counts against the same or an older epoch, and against its own name.
        (&[Here("u", 3), Directory("u", 3, "a")], "here u/3"),
        (&[Here("u", 3), Directory("u", 2, "a")], "here u/3"),
        (&[Here("u", 3), Directory("u", 0, "")], "here u/3"),
        (&[Here("u", 3), Directory("u", 4, "a")], "a u/4"),
        (&[Here("u", 3), Directory("u", 4, "me")], "here u/3"),
        (&[Here("u", 3), Hold("u"), Directory("u", 3, "a")], "held u/3"),
        // A start holds the requests of a dead owner's server, not those of a later one's.
        (&[Directory("u", 3, "a"), Hold("u")], "held u/3"),
        (&[Directory("u", 3, "a"), Hold("u"), Directory("u", 5, "b")], "b u/5"),
        (&[Directory("u", 3, "a"), Hold("u"), Here("u", 5)], "here u/5"),
        (&[Directory("u", 3, "a"), Hold("u"), Release("u")], "a u/3"),
        // A handoff from here is known here first.
        (&[Here("u", 3), Hold("u"), There("u", 4, "b")], "b u/4"),
        (&[Here("u", 3), There("u", 4, "b"), Directory("u", 3, "me")], "b u/4"),
        (&[Here("u", 3), There("u", 4, "b"), Directory("u", 4, "b")], "b u/4"),
        (&[Here("u", 3), There("u", 4, "b"), Directory("u", 6, "c")], "c u/6"),
        (&[Here("u", 3), There("u", 4, "b"), There("u", 3, "a")], "b u/4"),
        (&[Here("u", 3), There("u", 3, "a")], "here u/3"),
        (&[Here("u", 3), There("u", 4, "me")], "here u/3"),
        // What was released is not looked for where it was before.
        (&[Directory("u", 2, "a"), Here("u", 3), Release("u")], "nowhere u/3"),
        (&[Here("u", 3), Release("u"), Directory("u", 5, "b")], "b u/5"),
        (&[Directory("u", 5, "b"), Here("u", 3), Release("u")], "b u/5"),
        (&[Directory("u", 5, "b"), Hold("v"), Release("u")], "b u/5"),
        // A name that was deleted and made again.
        (&[Here("u", 3), Directory("v", 1, "b")], "b v/1"),
        (&[Here("u", 3), Directory("v", 0, "")], "nowhere v/0"),
        (&[There("u", 9, "a"), Directory("v", 1, "b")], "b v/1"),
        (&[Directory("v", 1, "b"), There("u", 9, "a")], "b v/1"),
        (&[Here("u", 3), Directory("v", 1, "b"), Here("v", 2)], "here v/2"),
        // A whole directory, and names that are gone.
        (&[There("u", 4, "b"), Complete], "unknown"),
        (&[Directory("u", 4, "b"), Complete], "unknown"),
        (&[Here("u", 3), Complete], "here u/3"),
        (&[Here("u", 3), Hold("u"), Complete, Release("u")], "nowhere u/3"),
        (&[Here("u", 3), Directory("u", 3, "me"), Removed], "here u/3"),
        (&[Directory("u", 3, "a"), Complete, Removed], "unknown"),
    ];
    for (row, (steps, expected)) in table.iter().enumerate() {
        let routes = Routes::new(PodUid("me".into()));
        steps.iter().for_each(|step| take(&routes, step));
        assert_eq!(shown(&routes), *expected, "row {row}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_a_change_and_by_nothing_else() {
    let routes = Routes::new(PodUid("me".into()));
    routes.set_here(&room(), Epoch(1));
    routes.hold(&room());
    let seen = routes.find("lobby");
    let woken = async || timeout(Duration::from_millis(50), routes.changed("lobby", &seen)).await.is_ok();
    assert!(!woken().await);
    routes.hold(&room());
    assert!(!woken().await);
    let (woken, ()) = tokio::join!(woken(), async { routes.set_here(&room(), Epoch(1)) });
    assert!(woken);
    // Frozen and thawed: the same again, but not what was seen.
    routes.hold(&room());
    routes.changed("lobby", &seen).await;
}
