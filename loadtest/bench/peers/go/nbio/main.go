// A server on nbio, which serves idle connections without a goroutine each: `nbio PORT`.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"
	"holdfast.test/peers/hub"
)

// Longer than any run: heartbeats are the load client's.
const keepAlive = time.Hour

type member struct{ *websocket.Conn }

func (m member) Send(body []byte) { _ = m.WriteMessage(websocket.BinaryMessage, body) }

func broadcast(members map[member]struct{}, body []byte) {
	for one := range members {
		one.Send(body)
	}
}

func upgrader(h *hub.Hub[member]) *websocket.Upgrader {
	u := websocket.NewUpgrader()
	u.KeepaliveTime = keepAlive
	u.CheckOrigin = func(*http.Request) bool { return true }
	u.OnOpen(func(c *websocket.Conn) { c.SetSession(&hub.Joined[member]{}) })
	u.OnMessage(func(c *websocket.Conn, _ websocket.MessageType, body []byte) {
		h.Act(member{c}, c.Session().(*hub.Joined[member]), body)
	})
	u.OnClose(func(c *websocket.Conn, _ error) { h.Gone(member{c}, c.Session().(*hub.Joined[member])) })
	return u
}

func main() {
	logging.SetLevel(logging.LevelError)
	u := upgrader(hub.New(broadcast))
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		if _, err := u.Upgrade(w, r, nil); err != nil {
			fmt.Fprintln(os.Stderr, "nbio:", err)
		}
	})
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{"127.0.0.1:" + os.Args[1]},
		Handler:                 mux,
		KeepaliveTime:           keepAlive,
		ReleaseWebsocketPayload: true,
	})
	if err := engine.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "nbio:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	<-stop
}
