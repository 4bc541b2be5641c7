//! A host for the tests that misbehaves as `BAD_HOST` says, with the rooms of the example behind it where it behaves.
//!
//! | | |
//! | --- | --- |
//! | `good` | passes everything on |
//! | `refuse-standby`, `hang-standby`, `slow-standby` | refuses, never answers, or takes its time for whatever is handed to it |
//! | `garbage`, `silent` | answers nonsense, or nothing, to everything |
//! | `exit` | ends at once |

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, future};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

const DIR: &str = "/run/durable";
const INNER: &str = "/run/durable/inner";
const ROOMS: &str = "/rooms";
/// The argument with which this program is the gate before the rooms.
const GATE: &str = "gate";
/// A slow standby takes so long.
const SLOW: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Good,
    RefuseStandby,
    HangStandby,
    SlowStandby,
    Garbage,
    Silent,
}

fn main() -> Result<()> {
    let mode = match env::var("BAD_HOST").as_deref() {
        Ok("good") => Mode::Good,
        Ok("refuse-standby") => Mode::RefuseStandby,
        Ok("hang-standby") => Mode::HangStandby,
        Ok("slow-standby") => Mode::SlowStandby,
        Ok("garbage") => Mode::Garbage,
        Ok("silent") => Mode::Silent,
        other => bail!("this host ends here (BAD_HOST is {other:?})"),
    };
    if matches!(mode, Mode::Garbage | Mode::Silent) || env::args().nth(1).as_deref() == Some(GATE) {
        return serve(mode);
    }
    fs::create_dir_all(INNER)?;
    let agent = Path::new(INNER).join("agent.sock");
    if agent.symlink_metadata().is_err() {
        symlink(Path::new(DIR).join("agent.sock"), agent)?;
    }
    // The rooms take this process's place: SIGTERM is theirs, and so is the end of the container.
    Command::new(env::current_exe()?).arg(GATE).spawn()?;
    Err(Command::new(ROOMS).env("DURABLE_DIR", INNER).exec()).context(ROOMS)
}

#[tokio::main(flavor = "current_thread")]
async fn serve(mode: Mode) -> Result<()> {
    let path = Path::new(DIR).join("host.sock");
    // One of an earlier container; there is none at first.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    let app = Router::new().fallback(answer).with_state(mode);
    Ok(axum::serve(listener, app).await?)
}

async fn answer(State(mode): State<Mode>, request: Request) -> Response {
    let is_standby = request.headers().get("durable-mode").is_some_and(|mode| mode == "standby");
    match mode {
        Mode::Garbage => return "<html>not what was asked for</html>".into_response(),
        Mode::Silent => future::pending().await,
        Mode::HangStandby if is_standby => future::pending().await,
        Mode::RefuseStandby if is_standby => {
            return (StatusCode::UNPROCESSABLE_ENTITY, "this host takes nothing that is handed to it").into_response();
        }
        Mode::SlowStandby if is_standby => sleep(SLOW).await,
        _ => {}
    }
    pass_on(request).await.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

async fn pass_on(request: Request) -> Result<Response> {
    let stream = UnixStream::connect(Path::new(INNER).join("host.sock")).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Body::new))
}
