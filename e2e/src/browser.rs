//! A real browser without a window, driven by the Chrome `DevTools` Protocol over two pipes: each message is JSON and ends
//! with a zero byte.

use std::collections::VecDeque;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// The browser reads what it is told from descriptor 3 and answers on 4. Only a shell can put our pipes there without
/// unsafe code. Root may use the browser only without its own sandbox; what it opens here is our own page.
const START: &str = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars \
    --user-data-dir=\"$1\" --remote-debugging-pipe 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1";
/// One command. A machine that is busy with a rollout draws slowly.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the browser says unasked and nobody has looked at: the newest so many.
const REMEMBERED: usize = 100;

/// A browser with one open page.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    profile: tempfile::TempDir,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last: u64,
    session: Option<String>,
    events: VecDeque<Value>,
}

impl Browser {
    /// Opens a page of this size (CSS pixels) in a browser of its own.
    pub async fn open(url: &str, width: u32, height: u32) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", START, "sh"]).arg(profile.path());
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = shell.spawn()?;
        let to = process.stdin.take().context("no pipe to the browser")?;
        let from = BufReader::new(process.stdout.take().context("no pipe from the browser")?);
        let mut browser = Self { process, profile, to, from, last: 0, session: None, events: VecDeque::new() };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = target.context("the browser does not start; `e2e/setup` installs Debian's package chromium")?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", size).await?;
        let opened = browser.call("Page.navigate", json!({ "url": url })).await?;
        ensure!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        Ok(browser)
    }

    /// Sends one command and waits for its answer.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        let answered = timeout(PATIENCE, async {
            self.to.write_all(&bytes).await?;
            loop {
                let mut answer = self.read().await?;
                if answer["id"] == self.last {
                    ensure!(answer["error"].is_null(), "{}", answer["error"]);
                    return Ok(answer["result"].take());
                }
                self.events.push_back(answer);
                if self.events.len() > REMEMBERED {
                    self.events.pop_front();
                }
            }
        });
        answered.await.with_context(|| format!("{method}: no answer"))?.with_context(|| method.to_owned())
    }

    async fn read(&mut self) -> Result<Value> {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message).await?;
        match message.pop() {
            Some(0) => Ok(serde_json::from_slice(&message)?),
            _ => bail!("the browser has ended"),
        }
    }

    /// The value of a JavaScript expression in the page; of a promise, what it becomes.
    pub async fn value(&mut self, expression: &str) -> Result<Value> {
        let ask = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", ask).await?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].take())
    }

    /// Moves the mouse.
    pub async fn point(&mut self, x: f64, y: f64) -> Result<()> {
        self.call("Input.dispatchMouseEvent", json!({ "type": "mouseMoved", "x": x, "y": y })).await?;
        Ok(())
    }

    /// Whether the page sees that its reader prefers dark colours.
    pub async fn prefer_dark(&mut self, dark: bool) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).await?;
        Ok(())
    }

    /// The page as PNG.
    pub async fn picture(&mut self) -> Result<Vec<u8>> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png", "optimizeForSpeed": true })).await?;
        Ok(BASE64_STANDARD.decode(picture["data"].as_str().context("no picture")?)?)
    }

    /// Errors that the page or its browser reported since the last time: exceptions, refused requests, broken policies.
    pub async fn errors(&mut self) -> Result<Vec<String>> {
        // What was reported before this is answered has been read with it.
        self.value("0").await?;
        let error = |event: &Value| {
            let wrong = match event["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
                Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
                _ => false,
            };
            wrong.then(|| event["params"].to_string())
        };
        Ok(self.events.drain(..).filter_map(|event| error(&event)).collect())
    }

    /// Ends it.
    pub async fn close(mut self) -> Result<()> {
        self.session = None;
        self.call("Browser.close", json!({})).await.ok();
        timeout(PATIENCE, self.process.wait()).await.context("the browser does not end")??;
        Ok(self.profile.close()?)
    }
}
