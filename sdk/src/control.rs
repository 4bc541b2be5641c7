//! The agent's calls.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use serde::Serialize;

use crate::{
    answer::{Refusal, json},
    cell::{Mode, Start, Taken},
    headers::{self, Given, Mark, Order, Since},
    host::Running,
    server::LoadError,
};

/// Of the paths of these calls.
pub(crate) const PREFIX: &str = "/.durable/";
/// The version of the contract that this speaks.
const CONTRACT: u32 = 1;

#[derive(Serialize)]
struct Description {
    contract: u32,
    instance: u64,
    types: Vec<Type>,
    features: [&'static str; 2],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    name: &'static str,
    state_version: u32,
    loads: Vec<u32>,
}

pub(crate) async fn answer(host: &Running, parts: &Parts, body: Bytes) -> Result<Response<Bytes>, Refusal> {
    let path = parts.uri.path().strip_prefix("/.durable/v1/").ok_or_else(no_such_call)?;
    let mut segments = path.split('/');
    match (&parts.method, segments.next(), segments.next(), segments.next(), segments.next()) {
        (&Method::GET, Some("describe"), None, None, None) => Ok(json(&describe(host))),
        (&Method::GET, Some("servers"), None, None, None) => {
            Ok(json(&host.registry.all().iter().filter_map(|cell| cell.line()).collect::<Vec<_>>()))
        }
        (&Method::POST, Some("lease"), None, None, None) => lease(host, &parts.headers),
        (&Method::GET, Some("lease"), None, None, None) => match host.around.lease.known() {
            Some(known) => Ok(json(&known)),
            None => Err(Refusal::new(StatusCode::NOT_FOUND, "no agent has told this host of a lease")),
        },
        (&Method::GET, Some("servers"), Some(uid), Some("snapshot"), None) => snapshot(host, uid, &parts.headers).await,
        (&Method::POST, Some("servers"), Some(uid), Some(verb), None) => {
            change(host, uid, verb, &parts.headers, body).await
        }
        _ => Err(no_such_call()),
    }
}

fn describe(host: &Running) -> Description {
    let types = host.kinds.values();
    Description {
        contract: CONTRACT,
        instance: host.around.instance,
        types: types
            .map(|kind| Type { name: kind.name, state_version: kind.version, loads: kind.loads.clone() })
            .collect(),
        features: ["lease", "adopt"],
    }
}

fn lease(host: &Running, headers: &HeaderMap) -> Result<Response<Bytes>, Refusal> {
    let generation = headers::number(headers, headers::GENERATION)?;
    let deadline = Duration::from_millis(headers::number(headers, headers::DEADLINE)?);
    // Agents that do not adopt do not say it.
    let said = headers.contains_key(headers::ATTEMPT);
    let first = if said { headers::number(headers, headers::ATTEMPT)? } else { 0 };
    host.around.lease.renew(generation, deadline, first)?;
    Ok(Response::default())
}

async fn snapshot(host: &Running, uid: &str, headers: &HeaderMap) -> Result<Response<Bytes>, Refusal> {
    let cell = host.registry.find(uid).ok_or_else(|| Refusal::no_such_server(uid))?;
    let since = Since::read(headers)?;
    let taken = cell.snapshot(headers::number(headers, headers::EPOCH)?, since, &host.around).await?;
    Ok(state(taken, StatusCode::NOT_MODIFIED))
}

async fn change(
    host: &Running,
    uid: &str,
    verb: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response<Bytes>, Refusal> {
    if !matches!(verb, "start" | "activate" | "freeze" | "thaw" | "stop") {
        return Err(no_such_call());
    }
    let around = &host.around;
    let order = Order::read(headers)?;
    let answer = match verb {
        "start" => {
            let start = start(host, uid, order, headers, body)?;
            host.registry.obtain(uid).start(start, around).await.map(marked)
        }
        "activate" => {
            let given = Given::read(headers, body)?;
            host.registry.obtain(uid).activate(order, given, around).await.map(marked)
        }
        "freeze" => {
            let since = Since::read(headers)?;
            let taken = host.registry.obtain(uid).freeze(order, since, around).await;
            taken.map(|taken| state(taken, StatusCode::NO_CONTENT))
        }
        "thaw" => host.registry.obtain(uid).thaw(order, around).await.map(|()| Response::default()),
        _ => host.registry.obtain(uid).stop(order, around).await.map(|()| Response::default()),
    };
    let Order { epoch, attempt } = order;
    match &answer {
        Ok(_) => tracing::debug!(uid, epoch, attempt, verb, "done"),
        Err(refusal) => tracing::info!(uid, epoch, attempt, verb, %refusal, "refused"),
    }
    answer
}

fn start(host: &Running, uid: &str, order: Order, headers: &HeaderMap, body: Bytes) -> Result<Start, Refusal> {
    let given = Given::read(headers, body)?;
    let mode = match headers::text(headers, headers::MODE)? {
        "active" => Mode::Active,
        "standby" if given == Given::None => Mode::Standby(None),
        "standby" => Mode::Standby(Some(Mark::read(headers)?)),
        other => return Err(Refusal::bad_request(format!("the mode must be active or standby, not {other:?}"))),
    };
    let name = headers::text(headers, headers::TYPE)?;
    let kind = host.kinds.get(name).ok_or_else(|| {
        let known = host.kinds.keys().copied().collect::<Vec<_>>().join(", ");
        LoadError::new(format!("this host has no type {name:?}; it has: {known}"))
    })?;
    Ok(Start {
        order,
        name: headers::server_name(headers, uid)?,
        kind: Arc::clone(kind),
        config: headers::config(headers)?,
        given,
        mode,
    })
}

fn marked(mark: Mark) -> Response<Bytes> {
    let mut answer = Response::default();
    mark.write(answer.headers_mut());
    answer
}

fn state(taken: Taken, unchanged: StatusCode) -> Response<Bytes> {
    match taken {
        Taken::Full { mark, version, body } => {
            let mut answer = Response::new(body);
            let headers = answer.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(headers::STATE_VERSION, HeaderValue::from(version));
            mark.write(headers);
            answer
        }
        Taken::Unchanged(mark) => {
            let mut answer = marked(mark);
            *answer.status_mut() = unchanged;
            answer
        }
    }
}

fn no_such_call() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "this host speaks the host contract v1, which has no such call")
}
