# The plugin is one static binary that installs itself, so the image needs
# nothing else: no shell, no cp, no user database.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION COMMIT
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY plugins plugins
COPY internal internal
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.release=$VERSION -X main.commit=$COMMIT" -o /stillpoint ./plugins

FROM scratch
COPY --from=build /stillpoint /stillpoint
USER 65532:65532
ENTRYPOINT ["/stillpoint"]
