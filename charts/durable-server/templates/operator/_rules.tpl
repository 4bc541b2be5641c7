{{/* What the operator may do in the namespaces that it watches. */}}
{{- define "durable-server.namespacedRules" -}}
# Pools and servers are read; besides their status only the finalizer of a server is written.
- apiGroups: [durableserver.io]
  resources: [durableserverpools]
  verbs: [get, list, watch]
- apiGroups: [durableserver.io]
  resources: [durableservers]
  verbs: [get, list, watch, patch]
- apiGroups: [durableserver.io]
  resources: [durableserverpools/status, durableservers/status]
  verbs: [patch]
# One for each drain.
- apiGroups: [durableserver.io]
  resources: [handoffs]
  verbs: [get, list, watch, create, delete, patch]
- apiGroups: [durableserver.io]
  resources: [handoffs/status]
  verbs: [patch]
# Where servers can be, and why a pod goes.
- apiGroups: [""]
  resources: [pods, services]
  verbs: [get, list, watch]
{{- if .Values.podDeletionCost.enabled }}
# Their deletion cost, and nothing else: a ValidatingAdmissionPolicy of this chart refuses all other changes.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
{{- end }}
- apiGroups: [apps]
  resources: [replicasets, statefulsets]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What an operator that is gone has left on servers: its finalizer. */}}
{{- define "durable-server.releaseRules" -}}
- apiGroups: [durableserver.io]
  resources: [durableservers]
  verbs: [list, patch]
{{- end -}}
