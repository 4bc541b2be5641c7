//! A room as a later build would have it: it loads what a [`Room`] wrote, and writes what no [`Room`] loads. For trying what becomes
//! of servers when such a build is rolled back.

use bytes::Bytes;
use durable_sdk::{Context, DurableServer, LoadError, ServerName, State};
use http::{Request, Response};
use serde_json::Value;

use crate::routes::Room;

pub struct Later(Room);

impl DurableServer for Later {
    const TYPE: &str = Room::TYPE;
    const STATE_VERSION: u32 = Room::STATE_VERSION + 1;

    fn loads() -> Vec<u32> {
        vec![Room::STATE_VERSION, Self::STATE_VERSION]
    }

    fn load(server: &ServerName, config: Option<Value>, state: Option<State>) -> Result<Self, LoadError> {
        Room::load(server, config, state).map(Self)
    }

    async fn handle(&mut self, request: Request<Bytes>, context: &mut Context) -> Response<Bytes> {
        self.0.handle(request, context).await
    }

    fn snapshot(&self) -> Bytes {
        self.0.snapshot()
    }
}
