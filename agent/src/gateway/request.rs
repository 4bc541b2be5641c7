//! What a request asks.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    Method, Request, StatusCode, Uri, Version,
    body::Incoming,
    ext::Protocol,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    http::{
        request::Parts,
        uri::{Authority, PathAndQuery, Scheme},
    },
};
use percent_encoding::percent_decode_str;

use crate::{
    gate::Gate,
    gateway::{
        answer::Refusal,
        body::{Most, Outgoing, Stream, Taken},
        bounds::Buffer,
    },
    host::header,
    routes::Stamp,
};

/// The client wants an answer from this pod's host or none.
const NO_FORWARD: HeaderName = HeaderName::from_static("durable-no-forward");

/// How many gateways the request came through.
const HOPS: HeaderName = HeaderName::from_static("durable-hops");

/// Most gateways after the first that a request goes through.
const MAX_HOPS: u8 = 3;

/// Longest name of a resource.
const MAX_NAME: usize = 253;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What an upgrade may be to, in HTTP/1.1 and in HTTP/2 (RFC 8441).
const WEBSOCKET: &str = "websocket";

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Anyone.
    User,
    /// Another gateway of the pool, which has proved it.
    Peer,
}

/// A request, read as far as routing needs it. What is sent on is made anew for every try.
pub struct Call {
    /// The server's name.
    pub name: String,
    /// Gateways it came through.
    pub hops: u8,
    /// Whether it may be sent to another pod.
    pub forward: bool,
    /// Whether it opens a WebSocket.
    pub opens_socket: bool,
    method: Method,
    headers: HeaderMap,
    whole: PathAndQuery,
    /// Without the server's name.
    stripped: PathAndQuery,
    body: Taken,
}

impl Call {
    /// Reads a request's head.
    pub fn read(head: Parts, from: Origin) -> Result<Self, Refusal> {
        let opens_socket = opens_socket(&head)?;
        let Parts { method, uri, mut headers, .. } = head;
        // In HTTP/2 a socket is opened by a CONNECT; hosts, which speak HTTP/1.1, are asked by a GET.
        let method = if opens_socket { Method::GET } else { method };
        let uri = uri.into_parts();
        let whole = uri.path_and_query.ok_or_else(no_server)?;
        let (name, stripped) = split(&whole)?;
        let hops = match from {
            Origin::User => 0,
            // One that does not say how many goes no further.
            Origin::Peer => headers.get(&HOPS).and_then(|hops| hops.to_str().ok()?.parse().ok()).unwrap_or(MAX_HOPS),
        };
        let forward = headers.get(&NO_FORWARD).is_none_or(|value| value != "1");
        strip_connection(&mut headers);
        headers.remove(EXPECT);
        // HTTP/2 has it in the address; a host that speaks HTTP/1.1 wants the header.
        if let Some(authority) = uri.authority
            && !headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(authority.as_str())
        {
            headers.insert(HOST, host);
        }
        strip_ours(&mut headers);
        if opens_socket && !headers.contains_key(SEC_WEBSOCKET_KEY) {
            // A client that speaks HTTP/2 sends none, and a host that speaks HTTP/1.1 wants one.
            let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
            headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(|_| no_server())?);
        }
        Ok(Self { name, hops, forward, opens_socket, method, headers, whole, stripped, body: Taken::none() })
    }

    /// Reads the body, or as much of it as must be here before the request is sent on.
    pub async fn take_body(&mut self, body: Incoming, most: Most, room: Buffer) -> Result<(), Refusal> {
        self.body = Taken::read(body, most, room).await?;
        Ok(())
    }

    /// The body, if it comes while the request is sent on.
    pub fn stream(&self) -> Option<&Stream> {
        self.body.stream()
    }

    /// The request for this pod's host, of which nothing passes any more once the gate is closed.
    pub fn to_host(&self, stamp: &Stamp, gate: Gate) -> Request<Outgoing> {
        let mut request = self.to(&self.stripped, Some(gate));
        let headers = request.headers_mut();
        if self.stream().is_some() && !headers.contains_key(CONTENT_LENGTH) {
            // Else hyper sends a GET without its body.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        headers.insert(header::SERVER, stamp.server.clone());
        headers.insert(header::UID, stamp.uid.clone());
        headers.insert(header::EPOCH, stamp.epoch.clone());
        if self.opens_socket {
            upgrade(headers);
        }
        request
    }

    /// The request for another gateway. HTTP/2 wants the whole address; `Host` stays the client's.
    pub fn to_peer(&self, gateway: SocketAddr) -> Request<Outgoing> {
        let mut request = self.to(&self.whole, None);
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Authority::try_from(gateway.to_string()).ok();
        // Of three parts that are each valid.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request.headers_mut().insert(HOPS, HeaderValue::from(u16::from(self.hops) + 1));
        if self.opens_socket {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from_static(WEBSOCKET));
        }
        request
    }

    /// Whether it has gone through as many gateways as it may.
    pub fn is_lost(&self) -> bool {
        self.hops >= MAX_HOPS
    }

    /// Whether it cannot be sent again: more of its body has been passed on than is kept.
    pub fn is_spent(&self) -> bool {
        self.stream().is_some_and(|stream| !stream.is_kept())
    }

    /// Whether doing it twice does nothing more than doing it once does: only then may it be sent again when the first
    /// one may have been processed.
    pub fn is_safe(&self) -> bool {
        self.method.is_safe()
    }

    fn to(&self, path: &PathAndQuery, gate: Option<Gate>) -> Request<Outgoing> {
        let mut request = Request::new(self.body.send(gate));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(path.clone());
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Whether a request opens a WebSocket: an upgrade in HTTP/1.1, a CONNECT with a protocol in HTTP/2. Other upgrades are
/// offers, which a server may pass over; other protocols of a CONNECT are not.
fn opens_socket(head: &Parts) -> Result<bool, Refusal> {
    if head.method == Method::CONNECT {
        return match head.extensions.get::<Protocol>() {
            Some(protocol) if protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) => Ok(true),
            _ => Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "only CONNECT for a WebSocket is understood")),
        };
    }
    let names = |header, wanted: &str| {
        let values = head.headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    let may_upgrade = head.version == Version::HTTP_11 && head.method == Method::GET;
    Ok(may_upgrade && names(CONNECTION, "upgrade") && names(UPGRADE, WEBSOCKET))
}

/// Says, in a request or an answer, that the connection is a WebSocket from there on.
pub fn upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// Removes what belongs to one connection and not to the message.
pub fn strip_connection(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Nobody but agents speaks in these names to a host.
fn strip_ours(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with("durable-")).cloned() {
        headers.remove(name);
    }
}

fn no_server() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "the first segment of the path names the server: /<server>/<path>")
}

/// The server's name, and the path that the server is to see.
fn split(whole: &PathAndQuery) -> Result<(String, PathAndQuery), Refusal> {
    let path = whole.path().strip_prefix('/').ok_or_else(no_server)?;
    let (segment, rest) = path.find('/').map_or((path, ""), |slash| path.split_at(slash));
    let name = percent_decode_str(segment).decode_utf8().map_err(|_| no_server())?;
    if !is_name(&name) {
        return Err(no_server());
    }
    let control = percent_decode_str(rest).any_segment_is(b".durable");
    if control {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "paths with a segment .durable belong to the agent and its host",
        ));
    }
    let from = 1 + segment.len();
    let stripped = match (rest, whole.query()) {
        ("", None) => PathAndQuery::from_static("/"),
        ("", Some(query)) => path_and_query(&format!("/?{query}"))?,
        _ => path_and_query(&whole.as_str()[from..])?,
    };
    Ok((name.into_owned(), stripped))
}

trait Segments {
    fn any_segment_is(self, wanted: &[u8]) -> bool;
}

impl Segments for percent_encoding::PercentDecode<'_> {
    /// However it is escaped, doubled or dotted: hosts differ in how they read a path.
    fn any_segment_is(self, wanted: &[u8]) -> bool {
        let bytes: std::borrow::Cow<'_, [u8]> = self.into();
        bytes.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| segment.eq_ignore_ascii_case(wanted))
    }
}

fn path_and_query(text: &str) -> Result<PathAndQuery, Refusal> {
    text.parse().map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the path cannot be read"))
}

/// Whether a resource could have this name.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && !name.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::boot_time;

    #[test]
    fn splits_the_servers_name_from_the_path() {
        for (whole, name, stripped) in [
            ("/lobby", "lobby", "/"),
            ("/lobby?x=1", "lobby", "/?x=1"),
            ("/lobby/", "lobby", "/"),
            ("/lobby/a/b?x=/y", "lobby", "/a/b?x=/y"),
            ("/l%6Fbby/a%2Fb", "lobby", "/a%2Fb"),
            ("/lobby//a", "lobby", "//a"),
        ] {
            let (found, rest) = split(&whole.parse().unwrap()).unwrap();
            assert_eq!((found.as_str(), rest.as_str()), (name, stripped), "{whole}");
        }
        for whole in ["/", "//a", "/UPPER/a", "/%ff/a", "/.durable/v1/servers", "/-a", "/a%2fb"] {
            assert!(split(&whole.parse().unwrap()).is_err(), "{whole}");
        }
    }

    #[test]
    fn keeps_users_from_the_hosts_control_calls() {
        for whole in [
            "/lobby/.durable/v1/servers/u/stop",
            "/lobby/%2edurable/v1/describe",
            "/lobby//.DURABLE/v1",
            "/lobby/a/../.durable/v1",
            "/lobby/x%2f.durable%2fv1",
            "/lobby/.durable",
        ] {
            assert!(split(&whole.parse().unwrap()).is_err(), "{whole}");
        }
        assert!(split(&"/lobby/.durables?x=/.durable/".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_socket_is_opened_alike_whatever_the_client_speaks() {
        let one = Request::get("/lobby/socket")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-key", "k");
        let two = Request::connect("http://host/lobby/socket").extension(Protocol::from_static("websocket"));
        let stamp = Stamp { server: "ns/lobby".parse().unwrap(), uid: "u".parse().unwrap(), epoch: 3.into() };
        for (request, key_length) in [(one, 1), (two, 24)] {
            let call = Call::read(request.body(()).unwrap().into_parts().0, Origin::User).unwrap();
            assert!(call.opens_socket);
            let asked = call.to_host(&stamp, Gate::open(boot_time));
            assert_eq!((asked.method(), asked.uri().path()), (&Method::GET, "/socket"));
            let header = |name| asked.headers()[name].to_str().unwrap();
            assert_eq!((header("connection"), header("upgrade")), ("Upgrade", "websocket"));
            assert_eq!(header("sec-websocket-key").len(), key_length);
            let passed_on = call.to_peer("10.0.0.1:7070".parse().unwrap());
            assert_eq!((passed_on.method(), passed_on.uri().path()), (&Method::CONNECT, "/lobby/socket"));
            assert_eq!(passed_on.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
            assert!(!passed_on.headers().contains_key("upgrade"));
        }
    }

    #[test]
    fn other_upgrades_are_passed_over_and_other_tunnels_refused() {
        let read = |request: hyper::http::request::Builder| {
            Call::read(request.body(()).unwrap().into_parts().0, Origin::User).map(|call| call.opens_socket)
        };
        let upgrade = |builder: hyper::http::request::Builder, to| {
            builder.uri("/lobby").header("connection", "upgrade").header("upgrade", to)
        };
        assert!(!read(upgrade(Request::builder(), "h2c")).unwrap());
        assert!(!read(upgrade(Request::builder().method("POST"), "websocket")).unwrap());
        assert!(!read(Request::get("/lobby").header("upgrade", "websocket")).unwrap());
        let tunnel = || Request::connect("http://host/lobby");
        assert!(read(tunnel()).is_err());
        assert!(read(tunnel().extension(Protocol::from_static("connect-udp"))).is_err());
    }

    #[test]
    fn takes_no_orders_from_clients_in_headers() {
        let request = Request::get("/lobby/a")
            .header("durable-uid", "u")
            .header("durable-epoch", "9")
            .header("durable-hops", "2")
            .header("connection", "keep-alive, x-private")
            .header("x-private", "1")
            .header("x-kept", "1")
            .body(())
            .unwrap();
        let (head, ()) = request.into_parts();
        assert_eq!(Call::read(head.clone(), Origin::User).unwrap().hops, 0, "anyone could say so");
        let call = Call::read(head, Origin::Peer).unwrap();
        assert_eq!((call.hops, call.forward), (2, true));
        assert_eq!(call.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
        let request = call.to_peer("10.0.0.1:7070".parse().unwrap());
        assert_eq!(request.headers()["durable-hops"], "3");
        assert_eq!(request.uri().authority().unwrap(), "10.0.0.1:7070");
    }
}
