package cluster

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Glance keeps what the API server has answered about the objects of
// namespaces, for a program that looks at the cluster once: the same question
// is asked once, and all that is said comes from the same moment. It is safe
// for concurrent use.
type Glance struct {
	mu      sync.Mutex
	answers map[string]said
}

// said is one answer.
type said struct {
	status int
	header http.Header
	body   []byte
}

// NewGlance returns a Glance that has seen nothing.
func NewGlance() *Glance { return &Glance{answers: map[string]said{}} }

// Wrap is for rest.Config.Wrap. What changes or watches anything, and commands
// in containers, pass through.
func (g *Glance) Wrap(next http.RoundTripper) http.RoundTripper { return &glancing{g, next} }

// Forget makes room when nothing more will be asked about a namespace.
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

// RoundTrip answers from memory where it can.
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
		known = said{status: response.StatusCode, header: response.Header}
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
