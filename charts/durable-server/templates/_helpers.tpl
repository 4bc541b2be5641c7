{{/* What the names of all objects begin with. */}}
{{- define "durable-server.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "durable-server.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "durable-server.serviceAccountName" -}}
{{- default (printf "%s-operator" (include "durable-server.fullname" .)) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Cluster-wide objects: two releases of one name in two namespaces must not meet. */}}
{{- define "durable-server.clusterName" -}}
{{- printf "%s-%s-operator" .Release.Namespace (include "durable-server.fullname" .) -}}
{{- end -}}

{{/* Where the certificates are. cert-manager's have a Secret of their own: ours has the authority's key too. */}}
{{- define "durable-server.tlsSecret" -}}
{{- include "durable-server.fullname" . }}-operator-{{ ternary "tls" "certificates" .Values.webhook.certManager.enabled }}
{{- end -}}

{{/* Where the authority of the agents' certificates is, which the operator makes also beside cert-manager. */}}
{{- define "durable-server.peerSecret" -}}
{{- include "durable-server.fullname" . }}-operator-certificates
{{- end -}}

{{/* The DNS names that they are for, one a line: of the Service for agents, and of the webhook's. */}}
{{- define "durable-server.tlsNames" -}}
{{- range $service := list "operator" "webhook" -}}
{{- $name := printf "%s-%s.%s" (include "durable-server.fullname" $) $service $.Release.Namespace }}
{{ $name }}
{{ $name }}.svc
{{- end -}}
{{- end -}}

{{/* Labels that never change: (dict "root" $ "component" "operator") */}}
{{- define "durable-server.selectorLabels" -}}
app.kubernetes.io/name: {{ include "durable-server.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "durable-server.labels" -}}
{{ include "durable-server.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "image" .Values.image) */}}
{{- define "durable-server.image" -}}
{{- $name := printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- if .image.registry -}}{{ .image.registry }}/{{ end }}{{ $name }}
{{- end -}}

{{/* What pod security "restricted" asks of a pod and of a container. */}}
{{- define "durable-server.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "durable-server.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Labels of what a monitoring stack finds by labels: (dict "root" $ "more" .labels) */}}
{{- define "durable-server.monitoringLabels" -}}
{{- merge (deepCopy .more) (include "durable-server.labels" (dict "root" .root "component" "monitoring") | fromYaml) | toYaml -}}
{{- end -}}

{{/* Where small pods beside the operator may run: where it may. */}}
{{- define "durable-server.where" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What they need, so that a ResourceQuota is met. */}}
{{- define "durable-server.small" -}}
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  limits:
    memory: 64Mi
{{- end -}}

{{/* Annotations of what is made when all else is deleted; the argument is its weight. */}}
{{- define "durable-server.afterDelete" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
# What failed stays, to be read, until it is tried again.
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
