//! A pod that can host, and what a room needs of one.

use handoff::{
    PodUid,
    placement::{Need, PodFacts},
};

pub fn pod(name: &str) -> PodFacts {
    PodFacts {
        pod: PodUid(name.into()),
        ready: true,
        running: true,
        schedulable: true,
        session: true,
        newest: true,
        capacity: 100,
        types: [(String::from("room"), vec![1])].into(),
        ..PodFacts::default()
    }
}

pub fn room(state_version: Option<u32>) -> Need {
    Need { kind: "room".into(), state_version, max_of_type: None, near: Vec::new() }
}
