//! The stream to a target, from its first message to the last answer.

use std::sync::Arc;

use bytes::Bytes;
use handoff::{HandoffId, PodUid, Sequence, log::Writer, source::Event};
use tokio::sync::mpsc;
use wire::peer::{self, from_target};

use super::Input;
use crate::agent::{Agent, Target};

/// Opens it with its first message, sends what follows, and turns what comes back into events until it breaks.
pub(super) async fn follow(
    agent: &Arc<Agent>,
    target: &Target,
    id: HandoffId,
    first: peer::FromSource,
    rest: mpsc::Receiver<peer::FromSource>,
    inputs: &mpsc::UnboundedSender<Input>,
) {
    use tokio_stream::{StreamExt, wrappers::ReceiverStream};
    let outbound = tokio_stream::once(first).chain(ReceiverStream::new(rest));
    let mut client = agent.peers.client(target, agent.max_message());
    let mut answers = match client.handoff(outbound).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => {
            tracing::debug!(to = %target.name, %status, "a handoff stream could not be opened");
            return;
        }
    };
    while let Ok(Some(answer)) = answers.message().await {
        if answer.handoff != id.0 {
            continue;
        }
        let Some(body) = answer.body else { continue };
        let event = event_of(body, target);
        if inputs.send(Input::Event(event)).is_err() {
            return;
        }
    }
}

fn event_of(body: from_target::Body, target: &Target) -> Event<Bytes> {
    match body {
        from_target::Body::Accept(accept) if accept.pod_uid == target.pod.0 => {
            Event::Accepted(Writer { pod: PodUid(accept.pod_uid), generation: handoff::Generation(accept.generation) })
        }
        from_target::Body::Accept(_) => Event::Rejected("another pod has the target's address".into()),
        from_target::Body::Reject(reason) => Event::Rejected(reason),
        from_target::Body::Ready(_) => Event::Ready,
        from_target::Body::Activated(_) => Event::Activated,
        from_target::Body::Durable(durable) => Event::Durable(Sequence(durable.sequence)),
        from_target::Body::Refused(reason) => Event::Refused(reason),
    }
}
