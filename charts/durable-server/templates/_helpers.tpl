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
