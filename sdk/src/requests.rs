//! Users' requests, passed on by the agent.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};

use crate::{
    answer::{Refusal, not_here},
    headers,
    host::Running,
    stream::Said,
};

/// Of a user's request unless the host takes longer ones, and of a message of a socket.
pub(crate) const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// For more of a body to arrive. Longer than the agent waits, which tells the client.
pub(crate) const BODY_STALLED: Duration = Duration::from_mins(1);

pub(crate) async fn answer(host: &Arc<Running>, parts: Parts, body: Bytes) -> Result<Response<Said>, Refusal> {
    let epoch = headers::number(&parts.headers, headers::EPOCH)?;
    let Some(cell) = host.registry.find(headers::text(&parts.headers, headers::UID)?) else {
        return Ok(not_here().map(|body| Said::new(body, None)));
    };
    let request = Request::from_parts(parts, body);
    let (answer, accepted) = cell.handle(request, epoch, &host.around).await;
    if let Some(accepted) = accepted {
        tokio::spawn(accepted.serve(cell, epoch, Arc::clone(host)));
    }
    Ok(answer)
}
