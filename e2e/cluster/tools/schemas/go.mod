module durable-server/cluster/schemas

go 1.26

// For their resource definitions; nothing of them is built.
require (
	github.com/cert-manager/cert-manager v1.18.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
