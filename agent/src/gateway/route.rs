//! Where a request goes: to the host, to another gateway, or nowhere until either is known.

use std::{future::pending, net::SocketAddr, pin::pin, str::FromStr, sync::Arc, time::Duration};

use handoff::{Epoch, PodUid, ServerUid};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    connections::SendError,
    gateway::{
        Inner,
        answer::{InFlight, Passed, Payload, Refusal, UnderWay},
        body::{Most, Stream},
        bounds::Visit,
        peers::Purpose,
        request::{Call, Origin, strip_connection},
        sockets::Stays,
    },
    host::header,
    metrics,
    routes::{Found, Route, Stamp, Way},
};

/// On an answer: the pod that gave it, by name.
const POD: HeaderName = HeaderName::from_static("durable-pod");

/// On an answer to another gateway: who owns the server, `<gateway>;<epoch>;<pod uid>;<server uid>`.
const OWNER: HeaderName = HeaderName::from_static("durable-owner");

/// When a route that did not work is tried again, should it not change before.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What one try came to.
enum Tried {
    /// An answer.
    Answered(Answered),
    /// The request was not given to the server.
    NotGiven(String),
    /// It may have been, or will not be.
    Failed(Refusal),
}

/// An answer, and how it came.
struct Answered {
    way: metrics::Way,
    answer: Response<Passed>,
    /// While this pod's host has to do with it.
    at_host: Option<InFlight>,
}

/// How long a request has waited, and may.
#[derive(Default)]
struct Hold {
    until: Option<Instant>,
    waited: Duration,
}

impl Inner {
    /// The answer, and what lasts as long as it does. One that opens a socket bears how long that stays.
    pub(super) async fn answer(&self, request: Request<Incoming>, from: Origin) -> (Response<Payload>, UnderWay) {
        let mut hold = Hold::default();
        let mut under_way = UnderWay::begin(&self.in_flight);
        let answered = self.route(request, from, &mut hold).await;
        if !hold.waited.is_zero() {
            self.metrics.hold_time(hold.waited);
        }
        let (way, answer) = match answered {
            Ok((Answered { way, answer, at_host }, visit)) => {
                (under_way.visit, under_way.at_host) = (Some(visit), at_host);
                let way = if hold.waited.is_zero() { way } else { metrics::Way::Held };
                (way, answer.map(Payload::Right))
            }
            Err(refusal) => (metrics::Way::Refused, refusal.into_response()),
        };
        self.metrics.request(way, answer.status());
        (answer, under_way)
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        from: Origin,
        hold: &mut Hold,
    ) -> Result<(Answered, Arc<Visit>), Refusal> {
        let (head, body) = request.into_parts();
        let mut call = Call::read(head, from)?;
        let visit = self.bounds.enter(&call.name)?;
        let answered = self.seek(&mut call, body, &visit, hold).await?;
        Ok((answered, visit))
    }

    /// Tries until a route leads to an answer.
    async fn seek(
        &self,
        call: &mut Call,
        body: Incoming,
        visit: &Arc<Visit>,
        hold: &mut Hold,
    ) -> Result<Answered, Refusal> {
        let most = Most { kept: self.limits.body, passed: self.limits.longest };
        call.take_body(body, most, visit.buffer()).await?;
        loop {
            let found = self.routes.find(&call.name);
            let tried = match &found {
                Found::Unknown => return Err(unknown(&call.name)),
                Found::Known(route) if !call.forward => return self.only_here(call, route).await,
                Found::Known(route) => self.attempt(call, route).await,
                Found::NotYet => None,
            };
            let why = match tried {
                Some(Tried::Answered(answered)) => return Ok(answered),
                Some(Tried::Failed(refusal)) => return Err(refusal),
                Some(Tried::NotGiven(why)) if call.is_spent() => return Err(spent(&call.name, &why)),
                Some(Tried::NotGiven(why)) => Some(why),
                None => None,
            };
            self.wait(&call.name, &found, why, visit, hold).await?;
        }
    }

    /// One try by this route, if it leads anywhere.
    async fn attempt(&self, call: &Call, route: &Route) -> Option<Tried> {
        match &route.way {
            Way::Here(stamp) => Some(self.local(call, stamp, route).await),
            Way::There { pod, gateway } => Some(self.remote(call, pod, *gateway, route).await),
            Way::Held | Way::Nowhere => None,
        }
    }

    async fn only_here(&self, call: &Call, route: &Route) -> Result<Answered, Refusal> {
        let place = match &route.way {
            Way::Here(stamp) => match self.local(call, stamp, route).await {
                Tried::Answered(answered) => return Ok(answered),
                Tried::Failed(refusal) => return Err(refusal),
                Tried::NotGiven(why) => format!("is here, but did not take the request ({why})"),
            },
            Way::Held => "is here, but starts, stops or moves now".to_owned(),
            Way::There { pod, gateway } => format!("is at epoch {} in pod {pod}, gateway {gateway}", route.epoch),
            Way::Nowhere => "is in no pod that this one knows of".to_owned(),
        };
        let message = format!("server {} {place}", call.name);
        Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, message))
    }

    async fn local(&self, call: &Call, stamp: &Stamp, route: &Route) -> Tried {
        let at_host = Some(InFlight::begin(&self.at_host));
        let sending = self.host.forward(call.to_host(stamp, self.host.gate()));
        let sent = tokio::select! {
            biased;
            sent = self.send(call, sending, "the host") => sent,
            () = self.left_behind(call, route) => Err(Tried::NotGiven("it went before the body had come".into())),
        };
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(tried) => return tried,
        };
        let not_here =
            answer.status() == StatusCode::MISDIRECTED_REQUEST && answer.headers().contains_key(header::NOT_HERE);
        if not_here {
            return Tried::NotGiven("its host does not serve it now".into());
        }
        let opened = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if opened && !call.opens_socket {
            return Tried::Failed(Refusal::new(StatusCode::BAD_GATEWAY, "the host opened a socket unasked"));
        }
        if opened || is_endless(answer.headers()) {
            answer.extensions_mut().insert(Stays::here(&call.name, route));
        }
        let headers = answer.headers_mut();
        // A host has no say in it.
        headers.remove(OWNER);
        headers.insert(header::SERVER, stamp.server.clone());
        headers.insert(header::EPOCH, stamp.epoch.clone());
        headers.insert(POD, self.pod.clone());
        if call.hops > 0
            && let Ok(owner) = HeaderValue::try_from(Owner::mine(self, route).to_string())
        {
            headers.insert(OWNER, owner);
        }
        Tried::Answered(Answered { way: metrics::Way::Here, answer: answer.map(Passed::Left), at_host })
    }

    async fn remote(&self, call: &Call, pod: &PodUid, gateway: SocketAddr, route: &Route) -> Tried {
        if call.is_lost() {
            return Tried::Failed(Refusal::later(format!(
                "the request for server {} went through {} gateways and found no owner; try again",
                call.name,
                call.hops + 1
            )));
        }
        let purpose = match call.stream() {
            _ if call.opens_socket => Purpose::Sockets,
            Some(_) => Purpose::Bodies,
            None => Purpose::Requests,
        };
        let sending = self.peers.send(gateway, pod, purpose, call.to_peer(gateway));
        let mut answer = match self.send(call, sending, "the owner's gateway").await {
            Ok(answer) => answer,
            Err(tried) => return tried,
        };
        let opened = call.opens_socket && answer.status() == StatusCode::OK;
        if opened {
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        if opened || is_endless(answer.headers()) {
            answer.extensions_mut().insert(Stays::Elsewhere);
        }
        let headers = answer.headers_mut();
        if let Some(owner) = headers.get(OWNER).and_then(Owner::read)
            && owner.epoch > route.epoch
        {
            self.routes.set_there(&call.name, &owner.server, owner.epoch, owner.pod, owner.gateway);
        }
        if call.hops == 0 {
            headers.remove(OWNER);
        }
        Tried::Answered(Answered { way: metrics::Way::Forwarded, answer: answer.map(Passed::Right), at_host: None })
    }

    /// Sends, and judges what a failure means for the request.
    async fn send<B>(
        &self,
        call: &Call,
        sending: impl Future<Output = Result<Response<B>, SendError>>,
        whom: &str,
    ) -> Result<Response<B>, Tried> {
        let failed = |status, message| Tried::Failed(Refusal::new(status, message));
        let sent = self.in_time(call, sending).await;
        if !matches!(sent, Some(Ok(_)))
            && let Some(fault) = call.stream().and_then(Stream::fault)
        {
            return Err(Tried::Failed(fault));
        }
        match sent {
            Some(Ok(mut answer)) => {
                strip_connection(answer.headers_mut());
                Ok(answer)
            }
            Some(Err(SendError::NotSent(why))) => Err(Tried::NotGiven(format!("{whom}: {why}"))),
            Some(Err(SendError::Broken(why))) if call.is_safe() => Err(Tried::NotGiven(format!("{whom}: {why}"))),
            Some(Err(SendError::Broken(why))) => Err(failed(
                StatusCode::BAD_GATEWAY,
                format!("{whom} broke off before it answered ({why}); the request may have been processed"),
            )),
            None => Err(failed(
                StatusCode::GATEWAY_TIMEOUT,
                format!("{whom} did not answer within {:?}; the request may have been processed", self.limits.answer),
            )),
        }
    }

    /// What came of it, if that began in time: counted from the last that the other side took of the body.
    async fn in_time<T>(&self, call: &Call, sending: impl Future<Output = T>) -> Option<T> {
        let mut sending = pin!(sending);
        let mut since = Instant::now();
        loop {
            if let Ok(sent) = timeout_at(since + self.limits.answer, sending.as_mut()).await {
                return Some(sent);
            }
            since = call.stream().map(Stream::moved).filter(|moved| *moved > since)?;
        }
    }

    /// Returns when the server has gone while the body was still coming, of which nothing more is sent then. A host handles
    /// a request when it is whole: so it has not, and never will.
    async fn left_behind(&self, call: &Call, route: &Route) {
        let Some(stream) = call.stream() else { return pending().await };
        self.over(&Stays::here(&call.name, route)).await;
        if !stream.cut_short() {
            pending::<()>().await;
        }
    }

    /// Waits for another route, or after a failed try for a moment.
    async fn wait(
        &self,
        name: &str,
        found: &Found,
        failed: Option<String>,
        visit: &Visit,
        hold: &mut Hold,
    ) -> Result<(), Refusal> {
        let _place = visit.hold()?;
        let begin = Instant::now();
        let until = *hold.until.get_or_insert(begin + self.limits.hold);
        let pause = if failed.is_some() { until.min(begin + TRY_AGAIN) } else { until };
        tokio::select! {
            () = self.routes.changed(name, found) => {}
            () = sleep_until(pause) => {}
        }
        let now = Instant::now();
        hold.waited += now - begin;
        if now < until {
            return Ok(());
        }
        let why = failed.unwrap_or_else(|| reason(found).to_owned());
        Err(Refusal::later(format!("server {name} did not answer within {:?}: {why}; try again", self.limits.hold)))
    }
}

/// Whether an answer goes on for as long as its server does. A client of such events that were ended asks for more by itself;
/// any other answer is finished, however long it takes.
fn is_endless(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// The host or gateway that did not take a request has had too much of its body.
fn spent(name: &str, why: &str) -> Refusal {
    Refusal::later(format!(
        "the request was not given to server {name} ({why}), and its body is too long to be kept: send it again"
    ))
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no server {name} in this pool"))
}

fn reason(found: &Found) -> &'static str {
    match found {
        Found::Known(route) if route.way == Way::Held => "it starts, stops or moves",
        Found::Known(_) => "no pod is known to have it",
        Found::Unknown | Found::NotYet => "this pod does not know yet where servers are",
    }
}

/// The owner of a server, as gateways tell each other.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    gateway: SocketAddr,
    epoch: Epoch,
    pod: PodUid,
    server: ServerUid,
}

impl Owner {
    fn mine(inner: &Inner, route: &Route) -> Self {
        Self {
            gateway: inner.identity.address,
            epoch: route.epoch,
            pod: inner.identity.pod_uid.clone(),
            server: route.uid.clone(),
        }
    }

    fn read(value: &HeaderValue) -> Option<Self> {
        value.to_str().ok()?.parse().ok()
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{};{};{};{}", self.gateway, self.epoch, self.pod, self.server)
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(4, ';');
        let mut part = || parts.next().ok_or(());
        Ok(Self {
            gateway: part()?.parse().map_err(|_| ())?,
            epoch: Epoch(part()?.parse().map_err(|_| ())?),
            pod: PodUid(part()?.to_owned()),
            server: ServerUid(part()?.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_owner_reads_as_it_was_written() {
        let owner = Owner {
            gateway: "10.0.0.1:7070".parse().unwrap(),
            epoch: Epoch(7),
            pod: PodUid("p-1".into()),
            server: ServerUid("u-1".into()),
        };
        assert_eq!(owner.to_string().parse(), Ok(owner));
        for text in ["", "10.0.0.1:7070;7;p", "10.0.0.1;7;p;u", "10.0.0.1:7070;x;p;u"] {
            assert_eq!(text.parse::<Owner>(), Err(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_reads_as_an_owner_is_one(text in "[0-9.:\\[\\]a-f;]{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let header = HeaderValue::from_bytes(&bytes).ok();
            for owner in [text.parse::<Owner>().ok(), header.as_ref().and_then(Owner::read)].into_iter().flatten() {
                prop_assert_eq!(owner.to_string().parse(), Ok(owner));
            }
        }

        #[test]
        fn any_owner_is_written_and_read(ip: std::net::IpAddr, port: u16, epoch: u64, pod in "[^;]{0,40}", server in "\\PC{0,40}") {
            let owner = Owner {
                gateway: SocketAddr::new(ip, port),
                epoch: Epoch(epoch),
                pod: PodUid(pod),
                server: ServerUid(server),
            };
            prop_assert_eq!(owner.to_string().parse(), Ok(owner));
        }
    }
}
