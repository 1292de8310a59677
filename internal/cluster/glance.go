package cluster

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Glance caches the API server's answers about objects in namespaces, for a program
// that examines the cluster once: it sends the same request once, and its findings
// come from the same moment. It is safe for concurrent use. An HTTP cache would not
// do: the API server forbids caching in its headers.
type Glance struct {
	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// NewGlance returns an empty Glance.
func NewGlance() *Glance { return &Glance{answers: map[string]answer{}} }

// Wrap is for rest.Config.Wrap. Writes, watches and commands in containers pass
// through.
func (g *Glance) Wrap(next http.RoundTripper) http.RoundTripper { return &glancing{g, next} }

// Forget drops the answers about a namespace that needs no more requests.
func (g *Glance) Forget(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key := range g.answers {
		if path, _, _ := strings.Cut(key, "?"); strings.Contains(path+"/", "/namespaces/"+namespace+"/") {
			delete(g.answers, key)
		}
	}
}

type glancing struct {
	*Glance
	next http.RoundTripper
}

// RoundTrip answers from the cache if it can.
func (g *glancing) RoundTrip(request *http.Request) (*http.Response, error) {
	url := request.URL
	if request.Method != http.MethodGet || request.Header.Get("Upgrade") != "" || url.Query().Has("watch") || !strings.Contains(url.Path, "/namespaces/") {
		return g.next.RoundTrip(request)
	}
	key := url.Path + "?" + url.RawQuery + " " + request.Header.Get("Accept")
	g.mu.Lock()
	known, ok := g.answers[key]
	g.mu.Unlock()
	if !ok {
		response, err := g.next.RoundTrip(request)
		if err != nil || (response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNotFound) {
			return response, err
		}
		known = answer{status: response.StatusCode, header: response.Header}
		known.body, err = io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			return nil, err
		}
		g.mu.Lock()
		g.answers[key] = known
		g.mu.Unlock()
	}
	return &http.Response{
		StatusCode: known.status, Status: http.StatusText(known.status), Header: known.header.Clone(), Request: request,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(known.body)), ContentLength: int64(len(known.body)),
	}, nil
}
