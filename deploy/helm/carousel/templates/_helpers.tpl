{{- define "carousel.server" -}}
app.kubernetes.io/name: carousel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "carousel.envoy" -}}
app.kubernetes.io/name: carousel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: envoy
{{- end }}

{{- define "carousel.common" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The name of an image. Arguments: the image, and its default tag. */}}
{{- define "carousel.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}
{{- else }}{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end }}
{{- end }}

{{- /* Envoy's configuration, with this release's replicas, and with TLS when tls.secret is set. */}}
{{- define "carousel.envoyConfiguration" -}}
{{- $config := .Files.Get "files/envoy.yaml" | fromYaml }}
{{- $cluster := index $config.static_resources.clusters 0 }}
{{- $endpoint := index (index $cluster.load_assignment.endpoints 0).lb_endpoints 0 }}
{{- $_ := set $endpoint.endpoint.address.socket_address "address" (printf "%s-replica" .Release.Name) }}
{{- if .Values.tls.secret }}
{{- $chain := index (index $config.static_resources.listeners 0).filter_chains 0 }}
{{- $_ := set $chain "transport_socket" (.Files.Get "files/tls.yaml" | fromYaml) }}
{{- end }}
{{- toYaml $config }}
{{- end }}
