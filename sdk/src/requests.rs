//! Users' requests, passed on by the agent.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request::Parts};

use crate::{
    answer::{Refusal, not_here},
    headers,
    host::Running,
};

/// Of a user's request.
pub(crate) const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// For a body to arrive.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) async fn answer(host: &Running, parts: Parts, body: Bytes) -> Result<Response<Bytes>, Refusal> {
    let epoch = headers::number(&parts.headers, headers::EPOCH)?;
    let Some(cell) = host.registry.find(headers::text(&parts.headers, headers::UID)?) else {
        return Ok(not_here());
    };
    let request = Request::from_parts(parts, body);
    Ok(cell.handle(request, epoch, &host.around).await)
}
