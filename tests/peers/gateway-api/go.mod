module tulle.dev/tests/peers/gateway-api

go 1.25

require sigs.k8s.io/gateway-api v1.6.3
