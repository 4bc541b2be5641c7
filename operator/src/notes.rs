//! Events for people. They may be lost; nothing waits for them.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};

use crate::model::{Key, Kind, Note, clip};

/// One Event.
const PUBLISH: Duration = Duration::from_secs(5);
/// Longest note, bytes.
const MAX_NOTE: usize = 1_000;

/// Publishes notes until nobody sends any more.
pub async fn run(client: Client, mut notes: mpsc::Receiver<Note>) {
    let recorder = Recorder::new(client, Reporter::from("durable-operator"));
    while let Some(note) = notes.recv().await {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.name().into(),
            note: Some(clip(&note.note, MAX_NOTE).to_owned()),
            action: note.action.into(),
            secondary: note.related.as_ref().map(|(kind, key)| reference(*kind, key, None)),
        };
        let about = reference(note.kind, &note.key, Some(note.uid.clone()));
        match timeout(PUBLISH, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(object = %note.key, %error, "event not published"),
            Err(_) => tracing::warn!(object = %note.key, "event not published in time"),
        }
    }
}

fn reference(kind: Kind, key: &Key, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some(if kind == Kind::Pod {
            "v1".to_owned()
        } else {
            format!("{}/{}", crds::GROUP, crds::VERSION)
        }),
        kind: Some(kind.name().into()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        uid,
        ..ObjectReference::default()
    }
}
