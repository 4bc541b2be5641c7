//! Tells the API server whom to trust: the bundle goes into our `MutatingWebhookConfiguration`.

use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Problem, secret::CALL};

/// One `MutatingWebhookConfiguration`.
pub struct WebhookTrust {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
}

impl WebhookTrust {
    /// The configuration of this name.
    #[must_use]
    pub fn new(client: Client, name: String) -> Self {
        Self { api: Api::all(client), name }
    }

    /// Writes the bundle where another one is. Replicas may do so at the same time: they write the same.
    pub async fn publish(&self, bundle: &str) -> Result<(), Problem> {
        let configuration = timeout(CALL, self.api.get(&self.name)).await.map_err(|_| Problem::Late)??;
        let Some(patch) = changes(&configuration, bundle) else { return Ok(()) };
        let patch = serde_json::from_value(patch).map_err(|error| Problem::Crypto(error.to_string()))?;
        let (params, patch) = (PatchParams::default(), Patch::<()>::Json(patch));
        timeout(CALL, self.api.patch(&self.name, &params, &patch)).await.map_err(|_| Problem::Late)??;
        tracing::info!(configuration = self.name, "the API server knows the authorities");
        Ok(())
    }
}

fn changes(configuration: &MutatingWebhookConfiguration, bundle: &str) -> Option<Value> {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let webhooks = configuration.webhooks.iter().flatten().enumerate();
    let others = webhooks.filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&bundle));
    let operations: Vec<Value> = others
        .flat_map(|(index, webhook)| {
            [
                json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook.name }),
                json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle }),
            ]
        })
        .collect();
    (!operations.is_empty()).then_some(Value::Array(operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundle: Option<&str>) -> MutatingWebhookConfiguration {
        let mut object = json!({ "webhooks": [{
            "name": "pods.durableserver.io", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        }]});
        if let Some(bundle) = bundle {
            object["webhooks"][0]["clientConfig"]["caBundle"] = json!(ByteString(bundle.as_bytes().to_vec()));
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn another_bundle_is_replaced_and_the_same_is_left() {
        assert_eq!(changes(&configuration(Some("PEM")), "PEM"), None);
        for other in [None, Some(""), Some("OLD")] {
            let mut object = serde_json::to_value(configuration(other)).unwrap();
            let patch = changes(&configuration(other), "PEM").unwrap();
            json_patch::patch(&mut object, &serde_json::from_value::<json_patch::Patch>(patch).unwrap()).unwrap();
            assert_eq!(object, serde_json::to_value(configuration(Some("PEM"))).unwrap(), "{other:?}");
        }
    }
}
