//! A room as a durable server: its state's format, and its routes.

use std::time::Duration;

use bytes::Bytes;
use durable_sdk::{Context, DurableServer, LoadError, Message, ServerName, Socket, State};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    PLACE,
    room::{Chat, Post, Posted, Who, now},
};

const PAGE: &str = include_str!("page.html");
/// The page brings all that it needs.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
const MAX_PAD: usize = 16 * 1024 * 1024;
/// Of a slow answer.
const MAX_SECONDS: u64 = 60;
const LINE_EVERY: Duration = Duration::from_millis(100);

/// `spec.config` of a room.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Bytes that the state has at least, to see what a larger one costs.
    #[serde(default)]
    pad: usize,
}

pub struct Room {
    chat: Chat,
    filler: String,
}

impl DurableServer for Room {
    const TYPE: &str = "room";
    const STATE_VERSION: u32 = 1;

    fn load(server: &ServerName, config: Option<Value>, state: Option<State>) -> Result<Self, LoadError> {
        let config = config.map_or_else(|| Ok(Config::default()), serde_json::from_value);
        let Config { pad } = config.map_err(|error| LoadError::new(format!("config: {error}")))?;
        if pad > MAX_PAD {
            return Err(LoadError::new(format!("config: pad must be at most {MAX_PAD}, not {pad}")));
        }
        let chat = match state {
            Some(state) => serde_json::from_slice(&state.body).map_err(LoadError::new)?,
            None => Chat::default(),
        };
        Ok(Self { chat, filler: filler(&server.uid, pad) })
    }

    async fn handle(&mut self, request: Request<Bytes>, context: &mut Context) -> Response<Bytes> {
        self.answer(&request, context).unwrap_or_else(|(status, sentence)| {
            context.unchanged();
            reply(status, &json!({ "error": sentence }))
        })
    }

    /// What comes over a socket is what else is posted to `/messages`, and so is what is answered.
    async fn message(&mut self, _: &Socket, message: Message, context: &mut Context) -> Option<Message> {
        let posted = match &message {
            Message::Text(text) => read(text.as_bytes()).and_then(|post| self.take(post, context)),
            Message::Binary(_) => Err(bad("a message must be text".into())),
        };
        let answer = posted.unwrap_or_else(|(_, sentence)| {
            context.unchanged();
            json!({ "error": sentence })
        });
        Some(Message::Text(answer.to_string()))
    }

    fn snapshot(&self) -> Bytes {
        let mut state = serde_json::to_vec(&self.chat).unwrap_or_default();
        let frame = r#","pad":"""#.len();
        if let Some(missing) = self.filler.len().checked_sub(state.len() + frame)
            && state.pop() == Some(b'}')
        {
            state.extend_from_slice(br#","pad":""#);
            state.extend_from_slice(&self.filler.as_bytes()[..missing]);
            state.extend_from_slice(br#""}"#);
        }
        state.into()
    }
}

type Refused = (StatusCode, String);

impl Room {
    fn answer(&mut self, request: &Request<Bytes>, context: &mut Context) -> Result<Response<Bytes>, Refused> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/" | "") => Ok(page()),
            (&Method::GET | &Method::HEAD, "/state") => Ok(reply(StatusCode::OK, &self.state(context))),
            (&Method::GET | &Method::HEAD, "/count") => Ok(self.counted(context)),
            (&Method::GET, "/slow") => self.slow(request, context),
            (&Method::GET, "/socket") if context.accept().is_some() => Ok(Response::default()),
            (&Method::GET, "/socket") => Err((StatusCode::UPGRADE_REQUIRED, "this opens a WebSocket".into())),
            (&Method::POST, "/messages") => self.post(request, context),
            (&Method::POST, "/join") => {
                self.chat.join(&parse::<Who>(request)?, now()).map_err(bad)?;
                Ok(self.counted(context))
            }
            (&Method::POST, "/leave") => {
                if !self.chat.leave(&parse::<Who>(request)?).map_err(bad)? {
                    context.unchanged();
                }
                Ok(self.counted(context))
            }
            (_, "/" | "" | "/state" | "/count" | "/slow" | "/socket" | "/messages" | "/join" | "/leave") => {
                Err((StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for this path", request.method())))
            }
            (_, path) => Err((StatusCode::NOT_FOUND, format!("a room has nothing at {path}"))),
        }
    }

    fn post(&mut self, request: &Request<Bytes>, context: &mut Context) -> Result<Response<Bytes>, Refused> {
        let mut answer = reply(StatusCode::OK, &self.take(parse(request)?, context)?);
        if request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "sync=1")) {
            context.answer_when_durable();
            answer.headers_mut().insert("durable-synced", HeaderValue::from_static("1"));
        }
        Ok(answer)
    }

    fn take(&mut self, post: Post, context: &mut Context) -> Result<Value, Refused> {
        let message = match self.chat.post(post, now()).map_err(bad)? {
            Posted::Now(message) => message,
            Posted::Before(message) => {
                context.unchanged();
                message
            }
        };
        Ok(json!({ "count": message.count, "id": message.id, "pod": PLACE.pod, "epoch": context.epoch() }))
    }

    /// The room as it is now, a line every tenth of a second: what is said of it does not change while it is said.
    fn slow(&self, request: &Request<Bytes>, context: &mut Context) -> Result<Response<Bytes>, Refused> {
        let seconds = request.uri().query().and_then(|query| query.strip_prefix("seconds=")?.parse::<u64>().ok());
        let seconds = seconds.filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
        let seconds = seconds.ok_or_else(|| bad(format!("?seconds= must be 1 to {MAX_SECONDS}")))?;
        let lines = seconds * 10;
        let body = json!({ "count": self.chat.count, "pod": PLACE.pod, "epoch": context.epoch(), "lines": lines });
        let stream = context.stream();
        tokio::spawn(async move {
            for number in 1..=lines {
                tokio::time::sleep(LINE_EVERY).await;
                if !stream.send(format!("{number} {body}\n")).await {
                    break;
                }
            }
        });
        let mut answer = Response::default();
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(answer)
    }

    fn counted(&self, context: &Context) -> Response<Bytes> {
        let body = json!({ "count": self.chat.count, "pod": PLACE.pod, "epoch": context.epoch() });
        reply(StatusCode::OK, &body)
    }

    fn state(&self, context: &Context) -> Value {
        json!({
            "server": context.server().to_string(),
            "pod": PLACE.pod,
            "node": PLACE.node,
            "epoch": context.epoch(),
            "count": self.chat.count,
            "members": self.chat.members,
            "messages": self.chat.messages,
        })
    }
}

/// So many characters, always the same for one room, that do not compress to nothing.
fn filler(uid: &str, length: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let seed = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut state = seed | 1;
    let letters = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[usize::from(state.to_be_bytes()[0] & 63)])
    });
    letters.take(length).collect()
}

fn parse<T: DeserializeOwned>(request: &Request<Bytes>) -> Result<T, Refused> {
    read(request.body())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| bad(format!("the body is not what it should be: {error}")))
}

fn bad(sentence: String) -> Refused {
    (StatusCode::BAD_REQUEST, sentence)
}

fn reply(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut answer = Response::new(body.to_string().into());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn page() -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(PAGE.as_bytes()));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(pad: usize, state: Option<Bytes>) -> Result<Room, LoadError> {
        let server = ServerName { namespace: "default".into(), name: "lobby".into(), uid: "u".into() };
        Room::load(&server, Some(json!({ "pad": pad })), state.map(|body| State { version: 1, body }))
    }

    #[test]
    fn a_state_is_padded_while_it_is_smaller_and_read_back() {
        for pad in [0, 40, 47, 48, 60, 4096] {
            let mut room = room(pad, None).unwrap();
            for number in 0..60 {
                let state = room.snapshot();
                let bare = serde_json::to_vec(&room.chat).unwrap().len();
                assert_eq!(state.len(), if bare + 9 <= pad { pad } else { bare }, "pad {pad}");
                let again = super::tests::room(pad, Some(state.clone())).unwrap();
                assert_eq!((again.chat.count, again.snapshot()), (room.chat.count, state));
                let post = Post { from: "ann".into(), text: "x".repeat(90), id: None };
                room.chat.post(post, number).unwrap();
            }
        }
    }

    #[test]
    fn a_wrong_config_is_said_to_be_one() {
        assert!(room(MAX_PAD + 1, None).is_err());
        let server = ServerName { namespace: "default".into(), name: "lobby".into(), uid: "u".into() };
        let refused = Room::load(&server, Some(json!({ "pads": 1 })), None).err().unwrap().to_string();
        assert_eq!(refused, "config: unknown field `pads`, expected `pad`");
    }
}
