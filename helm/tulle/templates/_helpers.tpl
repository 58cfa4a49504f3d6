{{/* Names are the same in every cluster: other objects, the proxies and the command rely on them. */}}
{{- define "tulle.name" -}}tulle-control-plane{{- end }}

{{/* The Secret that cert-manager keeps the issuing certificate in, and the Certificate that it does that for. */}}
{{- define "tulle.issuerSecret" -}}tulle-identity-issuer{{- end }}

{{/* What every object carries. */}}
{{- define "tulle.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tulle
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* What the control plane's pods are found by; it can never change. */}}
{{- define "tulle.selector" -}}
app.kubernetes.io/name: {{ include "tulle.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of the control plane's own objects. */}}
{{- define "tulle.controlPlane.labels" -}}
{{ include "tulle.selector" . }}
app.kubernetes.io/component: control-plane
{{ include "tulle.labels" . }}
{{- end }}

{{/* Of what comes with it. */}}
{{- define "tulle.other.labels" -}}
app.kubernetes.io/name: tulle
app.kubernetes.io/instance: {{ .Release.Name }}
{{ include "tulle.labels" . }}
{{- end }}

{{/* An image's reference: what the second leaves out, the first says. A digest wins over a tag. */}}
{{- define "tulle.image" -}}
{{- $common := index . 0 }}{{ $own := index . 1 }}{{ $version := index . 2 }}
{{- $repository := $own.repository | default $common.repository }}
{{- if or $own.tag $own.digest }}
{{- if $own.digest }}{{ printf "%s@%s" $repository $own.digest }}{{ else }}{{ printf "%s:%s" $repository $own.tag }}{{ end }}
{{- else if $common.digest }}{{ printf "%s@%s" $repository $common.digest }}
{{- else }}{{ printf "%s:%s" $repository ($common.tag | default $version) }}
{{- end }}
{{- end }}

{{/* The kinds of policy.tulle.dev, by what they may be asked for. */}}
{{- define "tulle.policies" -}}
[authorizationpolicies, egresspolicies, externalauthorizations, faultpolicies, peerauthentications, ratelimitpolicies, requestauthentications, telemetrypolicies, trafficpolicies]
{{- end }}

{{/* The Mesh that the values describe; a Mesh in the cluster holds in its place. */}}
{{- define "tulle.mesh" -}}
apiVersion: policy.tulle.dev/v1alpha1
kind: Mesh
metadata:
  name: mesh
spec:
  {{- /* To YAML, off is false. */}}
  mtls: {{ .Values.mesh.mtls | default "off" | quote }}
  trustDomain: {{ .Values.identity.trustDomain | quote }}
  {{- with .Values.mesh.networks }}
  networks:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  egress: {{ .Values.mesh.egress }}
  {{- with .Values.mesh.accessLog }}
  accessLog:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tracing }}
  {{- if .collector.endpoint }}
  tracing:
    collector: {{ .collector.endpoint | quote }}
    {{- with .collector.protocol }}
    protocol: {{ . }}
    {{- end }}
    sampling:
      percent: {{ .sampling.percent }}
      parentBased: {{ .sampling.parentBased }}
    connections: {{ .connections }}
  {{- end }}
  {{- end }}
{{- end }}

{{/* What both webhooks are like. */}}
{{- define "tulle.webhook" -}}
admissionReviewVersions: [v1]
clientConfig:
  service:
    name: {{ include "tulle.name" . }}
    namespace: {{ .Release.Namespace }}
    path: /inject
    port: 15017
failurePolicy: {{ .Values.webhook.failurePolicy }}
matchPolicy: Equivalent
# Another webhook may add a container after us.
reinvocationPolicy: IfNeeded
sideEffects: None
timeoutSeconds: {{ .Values.webhook.timeoutSeconds }}
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
{{- end }}

{{/* What the control plane reads at its start. */}}
{{- define "tulle.config" -}}
# The Mesh of the chart's values. A Mesh in the cluster holds in its place.
mesh.yaml: |
  {{- include "tulle.mesh" . | nindent 2 }}
# What proxies are like that are put beside pods; annotations of pods and namespaces win over it.
injection.json: |
  {{- include "tulle.injection" . | nindent 2 }}
{{- end }}

{{/* What the injector is told. */}}
{{- define "tulle.injection" -}}
{{- $proxy := .Values.proxy }}{{ $interception := .Values.interception }}
{{- $own := $proxy.image }}
{{- $resources := $proxy.resources | default dict }}
{{- $requests := $resources.requests | default dict }}{{ $limits := $resources.limits | default dict }}
{{- /* A tag or digest of the proxy's own leaves nothing of the common one. */}}
{{- $image := .Values.image }}{{ if or $own.tag $own.digest }}{{ $image = $own }}{{ end }}
{{- dict
  "namespace" .Release.Namespace
  "excludedNamespaces" .Values.webhook.excludedNamespaces
  "clusterDomain" .Values.clusterDomain
  "trustDomain" .Values.identity.trustDomain
  "imageRepository" ($own.repository | default .Values.image.repository)
  "imageTag" ($image.tag | default .Chart.AppVersion)
  "imageDigest" $image.digest
  "imagePullPolicy" ($own.pullPolicy | default .Values.image.pullPolicy)
  "resources" (dict
    "cpuRequest" (include "tulle.quantity" (list $requests "cpu") | fromYaml).of
    "cpuLimit" (include "tulle.quantity" (list $limits "cpu") | fromYaml).of
    "memoryRequest" (include "tulle.quantity" (list $requests "memory") | fromYaml).of
    "memoryLimit" (include "tulle.quantity" (list $limits "memory") | fromYaml).of)
  "logLevel" $proxy.logLevel
  "logFormat" $proxy.logFormat
  "shutdownGracePeriod" $proxy.shutdownGracePeriod
  "startupSeconds" (int $proxy.startupSeconds)
  "opaquePorts" $proxy.opaquePorts
  "skipInboundPorts" $interception.skipInboundPorts
  "skipOutboundPorts" $interception.skipOutboundPorts
  "skipSubnets" $interception.skipSubnets
  "dns" $interception.dns
  "dropQuic" $interception.dropQuic
| include "tulle.said" }}
{{- end }}

{{/* A quantity as text, or nothing at all: which is what holds then, and not the default. */}}
{{- define "tulle.quantity" -}}
{{- $value := get (index . 0) (index . 1) -}}
{{- /* `get` makes an empty text of a key that is not there. */}}
of: {{ or (kindIs "invalid" $value) (eq (toString $value) "") | ternary "null" (toJson $value | trimAll "\"" | quote) }}
{{- end }}

{{/* Without what is not said: empty texts. */}}
{{- define "tulle.said" -}}
{{- $said := dict }}
{{- range $key, $value := . }}
{{- if not (and (kindIs "string" $value) (eq (toString $value) "")) }}{{ $_ := set $said $key $value }}{{ end }}
{{- end }}
{{- toPrettyJson $said }}
{{- end }}

{{/* The control plane's flags. */}}
{{- define "tulle.arguments" -}}
- --source=kubernetes
- --mesh-file=/etc/tulle/mesh.yaml
- --injection-file=/etc/tulle/injection.json
- --trust-domain={{ .Values.identity.trustDomain }}
- --leaf-lifetime={{ .Values.identity.leafLifetime }}
- --root-rotate-before={{ .Values.identity.rotateRootBefore }}
{{- if eq .Values.identity.issuer "cert-manager" }}
- --issuer-secret={{ include "tulle.issuerSecret" . }}
{{- end }}
- --log-level={{ .Values.controlPlane.logLevel }}
- --log-format={{ .Values.controlPlane.logFormat }}
{{- end }}
